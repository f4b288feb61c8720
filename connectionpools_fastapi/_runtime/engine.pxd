from .._core.inventory cimport Inventory
from .._core.slot cimport Slot
from .._core.state cimport PoolState
from .._core.subscriptable cimport Subscriptable
from .executor cimport Executor
from .hooks cimport Hooks


cdef class Engine(Subscriptable):
    cdef object __weakref__
    cdef public object policy, name, clock, apply, reclaim_leak, lend_hook, _usage
    cdef public Hooks hooks
    cdef public PoolState state
    cdef public Inventory inventory
    cdef public Executor executor
    cdef public bint keeps_stacks, judges, _tells_waits, _has_doubts, _asks_before_return, _looks_at_returns


from .._core.inventory cimport Inventory
from .._core.slot cimport Slot
from .._core.state cimport PoolState
from .._core.subscriptable cimport Subscriptable
from .._core.waiter cimport Waiter
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

    cpdef Slot take(self)
    cpdef bint give_back(self, Slot slot)
    cpdef bint _must_check(self, Slot slot)
    cpdef object _accept(self, Waiter waiter, object terms)
    cpdef Slot _acquire_or_enqueue(self, Waiter waiter, object timeout)
    cpdef Slot _granted(self, Waiter waiter)


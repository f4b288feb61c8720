from .._core.slot cimport Slot
from .._core.state cimport PoolState
from .._core.subscriptable cimport Subscriptable
from .hooks cimport Hooks


cdef class Executor(Subscriptable):
    cdef object __weakref__
    cdef public Hooks _hooks
    cdef public PoolState _state
    cdef public object _clock, _forked, listeners, reports, loop, _lock, _decider, _timer, _lost, tokens
    cdef public set cut_off, _carriers
    cdef public double _due
    cdef public dict _jobs

    cpdef _run_effects(self, object me)
    cpdef _wake(self, object waiter)
    cpdef _start_change(self, Slot slot)

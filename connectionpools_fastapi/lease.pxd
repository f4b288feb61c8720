from ._core.slot cimport Slot
from ._core.subscriptable cimport Subscriptable
from ._runtime.engine cimport Engine


cdef class Lease(Subscriptable):
    cdef object __weakref__
    cdef public object _terms, _holder, _phase, _owner, _responding_since, _prepare
    cdef public Engine _engine
    cdef public long _turn

    cpdef _hold(self, Slot slot, object owner)
    cpdef Slot _leave(self)
    cpdef Slot _slot(self)
    cpdef Slot _finish(self)

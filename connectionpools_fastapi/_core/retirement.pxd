from .backoff cimport Backoff
from .generations cimport Generations
from .inventory cimport Inventory
from .slot cimport Slot
from .subscriptable cimport Subscriptable


cdef class Retirement(Subscriptable):
    cdef public long owed
    cdef public bint _has_budget
    cdef public Inventory _inventory
    cdef public Generations _generations
    cdef public Backoff _backoff
    cdef public object _maintenance, _counters, _effects

    cpdef str reason(self, Slot slot, double now)
    cpdef bint discard_if_due(self, Slot slot, double now)
    cpdef sweep(self)

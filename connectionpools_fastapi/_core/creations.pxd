from .backoff cimport Backoff
from .generations cimport Generations
from .inventory cimport Inventory


cdef class Creations:
    cdef public bint are_allowed
    cdef public long _max_creating
    cdef public Inventory _inventory
    cdef public Generations _generations
    cdef public Backoff _backoff
    cdef public object _effects, _retry

    cpdef bint may_begin(self)
    cpdef bint is_back_end_down(self, double now)
    cpdef bint is_retrying(self)
    cpdef double retry_at(self)

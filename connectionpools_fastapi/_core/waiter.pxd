from .slot cimport Slot
from .subscriptable cimport Subscriptable


cdef class Waiter(Subscriptable):
    cdef public double asked_at
    cdef public object deadline, owner, request, client, error
    cdef public bint has_own_timeout, waits, is_noted
    cdef public int rank
    cdef public Slot slot

    cpdef wake(self)

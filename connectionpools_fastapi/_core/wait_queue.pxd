from .subscriptable cimport Subscriptable
from .waiter cimport Waiter


cdef class WaitQueue(Subscriptable):
    cdef public tuple _lanes
    cdef public object _waiters, _order, _unwatched
    cdef public long size, peak, _special
    cdef public list _counts, _promotions, _deadlines
    cdef public dict _owners
    cdef public double due, _next_deadline

    cpdef join(self, Waiter waiter)
    cpdef leave(self, Waiter waiter)
    cpdef bint has_one_of(self, object owner)
    cpdef Waiter head(self)
    cpdef Waiter next(self)
    cpdef Waiter _pop(self, object lane)
    cpdef long ahead_of(self, int rank)
    cpdef _forget(self, Waiter waiter)

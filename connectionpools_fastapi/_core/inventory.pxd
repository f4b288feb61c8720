from .slot cimport Slot
from .subscriptable cimport Subscriptable


cdef class Inventory(Subscriptable):
    cdef public object policy, queue, by_hand, free
    cdef public object _effects, _maintenance, _next_free, put_next
    cdef public tuple _usable_ends
    cdef public long limit, min_free
    cdef public bint needs_lock, notifies_release, returns_are_fresh, is_fifo
    cdef public bint _retires, _has_check, _returns_need_more
    cdef public double fresh_after_check, fresh_after_use
    cdef public dict taken, loans, lent, slots, changing
    cdef public set checking, cleaning, creating

    cpdef Slot take(self, double now)
    cpdef end(self, Slot slot, double now)
    cpdef bint put_back(self, Slot slot, double now)
    cpdef lease_out(self, Slot slot, double now)
    cpdef Slot pop_free(self)
    cpdef Slot pop_fresh(self, double now)
    cpdef make_free(self, Slot slot)
    cpdef bint is_above_limit(self)
    cpdef bint has_room(self)
    cpdef long arriving(self)

from .subscriptable cimport Subscriptable


cdef class Slot(Subscriptable):
    cdef public object resource, key, generation, verdict, asked, waited, holder, lease, stack
    cdef public double fresh_until, since, checked_at, pace, retire_at, due_at, use_sum
    cdef public long leases
    cdef public list use_counts

    cpdef double wait(self)

from .subscriptable cimport Subscriptable


cdef class Generations(Subscriptable):
    cdef public object current, _population
    cdef public list _leavers

    cpdef bint are_turning_over(self)

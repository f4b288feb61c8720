cdef class Patience:
    cdef public double learned, lost, _learned_at
    cdef public bint is_tried, has_newcomer

    cpdef serve(self)

cdef class Recorder:
    cdef public tuple bounds
    cdef public list counts
    cdef public double sum

    cpdef record(self, double seconds)

cdef class Throughput:
    cdef public double idle, _cut_off_at
    cdef public long cut_off, _limit
    cdef public object handed

    cpdef begin(self, double now)
    cpdef skip(self, double now)
    cpdef double _last(self)

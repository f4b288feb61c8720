cdef class HeldLeases:
    cdef public double max_hold, next_check
    cdef public bint is_unscheduled
    cdef public set _warned

    cpdef schedule(self, double now)

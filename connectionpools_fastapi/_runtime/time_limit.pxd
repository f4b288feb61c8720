cdef class AsyncioTimeLimit:
    cdef public object loop, blocks, _timer
    cdef public double seconds

    cpdef set_timer(self)


cdef class _Block:
    cdef public AsyncioTimeLimit _limit
    cdef public object _task
    cdef public int _cancelled_before
    cdef public bint _is_cut_off
    cdef public double due

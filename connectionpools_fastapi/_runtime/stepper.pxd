from .time_limit cimport AsyncioTimeLimit


cdef class Stepper:
    cdef public AsyncioTimeLimit _limit
    cdef public object _awaited, _context, _coroutine, _on_end
    cdef public bint _is_cut_off, _must_cancel
    cdef public double due

    cpdef _step(self, object _=*)
    cpdef _end(self, object error)

cdef class _Totals:
    cdef public long leases, refusals, timeouts
    cdef public double use, wait


cdef class RouteUsage:
    cdef public object _lock
    cdef public dict _routes

    cpdef note_lease(self, double used, double waited)
    cpdef _Totals _of(self, str route)

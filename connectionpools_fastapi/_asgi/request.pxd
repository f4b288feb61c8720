cdef class Route:
    cdef public object _scope


cdef class RequestLeases:
    cdef public dict _leases
    cdef public tuple _again

cdef class Backoff:
    cdef public object _chance, cause
    cdef public long failures, noted, _recent
    cdef public double retry_at, down_at, _wanted_at, _recent_since

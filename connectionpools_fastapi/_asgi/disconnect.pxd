cdef class DisconnectWatcher:
    cdef public object _receive, _stop, _has_gone, _poll, _arrived, _task
    cdef public list _ahead
    cdef public dict _watched
    cdef public tuple _served
    cdef public int _readers
    cdef public bint _is_reading_ahead, _is_answered, _request_complete, disconnected

    cpdef _note(self, object message)

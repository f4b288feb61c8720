from .request cimport RequestLeases


cdef class Exchange(RequestLeases):
    cdef public object _receive, _scope, _send, _watcher, token, begun, _name
    cdef public tuple _until_response
    cdef public bint _has_ended
    cdef public int _running

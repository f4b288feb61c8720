from .._core.subscriptable cimport Subscriptable


cdef class Hooks(Subscriptable):
    cdef public object _policy, _refuse_prepare, _thread_limiter, _loop, failures, _time_limit, lend
    cdef public dict _hooks, _creations
    cdef public set _async
    cdef public bint _blocking, _wants_none, are_async, has_check, has_change, has_doubts, judges, steps_change

    cpdef bint doubt(self, object resource)
    cpdef object _hook(self, str name)
    cpdef bint _on_thread(self, str name)

from .._core.waiter cimport Waiter


cdef class TaskWaiter(Waiter):
    cdef public object loop, parked


cdef class AsyncioWaiter(TaskWaiter):
    cpdef wake(self)


cdef class ThreadWaiter(Waiter):
    cdef public object _parked

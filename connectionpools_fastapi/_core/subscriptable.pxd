cdef class Subscriptable:
    pass

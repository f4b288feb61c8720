cpdef bint is_answered()
cpdef object holding_request()

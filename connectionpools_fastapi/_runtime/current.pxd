cpdef object task_waiter(object task=*)

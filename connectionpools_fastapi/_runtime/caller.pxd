cpdef object current_task()

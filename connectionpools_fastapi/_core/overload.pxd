from .inventory cimport Inventory
from .patience cimport Patience
from .subscriptable cimport Subscriptable
from .throughput cimport Throughput
from .wait_queue cimport WaitQueue
from .waiter cimport Waiter


cdef class Overload(Subscriptable):
    cdef public bint sheds
    cdef public Patience patience
    cdef public Throughput throughput
    cdef public double room, look_at, due_at, _began_at, _refused_at
    cdef public Inventory _inventory
    cdef public WaitQueue _queue
    cdef public object _counters, _effects
    cdef public tuple _counts_before

    cpdef check_newcomer(self, Waiter waiter, object timeout, double now)

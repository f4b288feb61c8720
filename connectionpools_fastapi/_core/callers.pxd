from .backoff cimport Backoff
from .creations cimport Creations
from .held_leases cimport HeldLeases
from .inventory cimport Inventory
from .overload cimport Overload
from .slot cimport Slot
from .subscriptable cimport Subscriptable
from .wait_queue cimport WaitQueue
from .waiter cimport Waiter


cdef class Callers(Subscriptable):
    cdef public Inventory inventory
    cdef public object _max_waiting, _counters, _effects
    cdef public Backoff backoff
    cdef public Creations _creations
    cdef public bint notifies_leases
    cdef public WaitQueue _queue
    cdef public HeldLeases _held
    cdef public Overload _overload

    cpdef admit(self, Waiter waiter, object timeout, double now)
    cpdef grant(self, Slot slot, double now)

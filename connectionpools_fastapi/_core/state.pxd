from .backoff cimport Backoff
from .creations cimport Creations
from .generations cimport Generations
from .retirement cimport Retirement
from .callers cimport Callers
from .dispatcher cimport Dispatcher
from .held_leases cimport HeldLeases
from .inventory cimport Inventory
from .overload cimport Overload
from .slot cimport Slot
from .subscriptable cimport Subscriptable
from .wait_queue cimport WaitQueue
from .waiter cimport Waiter


cdef class PoolState(Subscriptable):
    cdef public object policy, status, _has_ended, effects, counters, peaks
    cdef public object maintenance, checks, probes, _first_generation
    cdef public bint has_check, has_change
    cdef public double due
    cdef public WaitQueue queue
    cdef public Backoff backoff
    cdef public Creations creations
    cdef public Generations generations
    cdef public Retirement retirement
    cdef public Inventory inventory
    cdef public HeldLeases held
    cdef public Overload overload
    cdef public Callers callers
    cdef public Dispatcher dispatcher

    cpdef _come_back(self, Slot slot, double now)
    cpdef double next_deadline(self)
    cpdef double _notify_at(self)

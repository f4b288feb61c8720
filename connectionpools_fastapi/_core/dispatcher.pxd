from .backoff cimport Backoff
from .creations cimport Creations
from .generations cimport Generations
from .retirement cimport Retirement
from .callers cimport Callers
from .held_leases cimport HeldLeases
from .inventory cimport Inventory
from .slot cimport Slot
from .subscriptable cimport Subscriptable
from .wait_queue cimport WaitQueue


cdef class Dispatcher(Subscriptable):
    cdef public bint is_steady, _has_check
    cdef public Inventory _inventory
    cdef public WaitQueue _queue
    cdef public Callers _callers
    cdef public HeldLeases _held
    cdef public object _checks
    cdef public Generations _generations
    cdef public Backoff _backoff
    cdef public Creations _creations
    cdef public Retirement _retirement

    cpdef serve(self, double now)
    cpdef set_needs_lock(self)
    cpdef bint hand_on_fresh(self, Slot slot, double now)
    cpdef put_to_use(self, Slot slot, double now)
    cpdef bint hand_on(self, Slot slot, double now)

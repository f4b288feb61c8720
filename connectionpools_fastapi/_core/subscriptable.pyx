"""Subscriptable: the base of compiled classes that are generic in their Python source."""

from types import GenericAlias


cdef class Subscriptable:
    """Lets `Slot[T]` stand for `Slot`, as in annotations."""

    __class_getitem__ = classmethod(GenericAlias)

"""Stores: all that is asked of a database. `questions` says what, `sqlite` and `postgres` each how."""

from .questions import CodeTakenError, LinkStore, ReportStore, StoreAwayError

__all__ = ["CodeTakenError", "LinkStore", "ReportStore", "StoreAwayError"]

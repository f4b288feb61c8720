"""Helpers for the tests of an application."""

from ._application import override_leased, started
from ._faults import faults
from ._sandbox import SandboxManager, sandbox

__all__ = ["SandboxManager", "faults", "override_leased", "sandbox", "started"]

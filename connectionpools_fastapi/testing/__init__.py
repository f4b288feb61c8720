"""Helpers for the tests of an application."""

from ._application import override_leased, started
from ._faults import faults
from ._guard import Finding, GuardError, guard
from ._sandbox import SandboxManager, sandbox

__all__ = ["Finding", "GuardError", "SandboxManager", "faults", "guard", "override_leased", "sandbox", "started"]

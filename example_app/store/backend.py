"""Backend: what each kind of database brings along."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from connectionpools_fastapi import ResourceManager

from .questions import LinkStore, ReportStore


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How to connect, and which store to put on a connection."""

    connections: ResourceManager[Any]
    links: Callable[[Any], LinkStore]
    report_connections: ResourceManager[Any]
    report: Callable[[Any], ReportStore]

"""Holders: what to call the task, thread or request that holds a lease."""

import asyncio
import gc
import sys
from collections.abc import Iterable
from contextvars import Context
from weakref import ReferenceType

from .._core.held_leases import LeaseSnapshot
from ..stats import Holder
from .request_context import REQUEST

STREAM_REMEDY = (
    ". A response keeps the lease of its request to its end: read what it needs in a block, `async with pool.lease()`, "
    'or write Leased(pool, scope="function"), and send after that'
)


def named(held: LeaseSnapshot) -> Holder:
    """Name the holder: by the given name, or after the task or thread in which the lease began."""
    return Holder(
        name=holder_name(held.holder, held.lease),
        age=held.age,
        wait=held.wait,
        uses=held.uses,
        responding=held.responding,
        trace=_trace_of(held),
    )


def describe_held(held: LeaseSnapshot) -> str:
    """Say for the log which holder has held a resource, and for how long."""
    return f"{holder_name(held.holder, held.lease)} has held a resource for {describe_age(held)}"


def facts_of(holder: Holder) -> dict[str, object]:
    """Return what a structured log and /pool/leases tell of a lease."""
    return {
        "holder": holder.name,
        "age": holder.age,
        "wait": holder.wait,
        "uses": holder.uses,
        "responding": holder.responding,
        "trace": holder.trace,
    }


def describe_age(held: LeaseSnapshot | Holder) -> str:
    """Say for how long a lease goes on, and how much of that its response has taken."""
    streamed = "" if held.responding is None else f" ({held.responding:.3g} s of them since its response began)"
    return f"{held.age:.3g} s{streamed}"


def remedy(leases: Iterable[LeaseSnapshot | Holder]) -> str:
    """Say for the log how to hold resources for less long, if one is held while a response is sent."""
    return STREAM_REMEDY if any(held.responding is not None for held in leases) else ""


def holder_name(holder: object, lease: object) -> str:
    """Name the holder of a lease: by the given name, or after the task or thread in which the lease began."""
    if holder is not None:
        return _said(holder)
    if isinstance(lease, ReferenceType):
        lease = lease()
    return name_of(getattr(lease, "_owner", lease))


def _said(holder: object) -> str:
    try:
        return str(holder)
    except Exception as error:  # noqa: BLE001 - whatever a holder raises: reports have to go on
        return f"{type(holder).__name__} (its name failed with {type(error).__name__})"


def name_of(owner: object) -> str:
    """Name a task by the request that it works for, else a task or a thread as its library does."""
    if owner is None:
        return "a holder that is gone"
    context = _context_of(owner)
    request = context.get(REQUEST) if context is not None else None
    if request is not None:
        return str(request)
    get_name = getattr(owner, "get_name", None)  # asyncio's tasks; threads have both
    return str(get_name() if get_name is not None else getattr(owner, "name", "unnamed"))


def _trace_of(held: LeaseSnapshot) -> str | None:
    """Return the id of the trace that a holder belongs to, in an application that uses OpenTelemetry."""
    otel = sys.modules.get("opentelemetry.trace")
    if otel is None:
        return None
    owners = (held.holder, getattr(held.lease, "_owner", held.lease))
    context = next(filter(None, map(_context_of, owners)), None)
    if context is None:
        return None
    span = context.copy().run(otel.get_current_span).get_span_context()
    return str(otel.format_trace_id(span.trace_id)) if span.is_valid else None


def _context_of(owner: object) -> Context | None:
    """Return the context of a task or request. Only reports pay for this look-up, not leases."""
    get_context = getattr(owner, "get_context", None)  # requests have it, and asyncio's tasks from Python 3.12 on
    if get_context is None and isinstance(owner, asyncio.Task):
        # The task's own context comes first, then those of its done callbacks.
        return next((found for found in gc.get_referents(owner) if isinstance(found, Context)), None)
    context = getattr(owner, "context", None) if get_context is None else get_context()  # a trio task has `context`
    return context if isinstance(context, Context) else None

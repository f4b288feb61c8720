"""guard: fail a test whose requests use their leases in a way that fails under load."""

# ruff: noqa: SLF001 - for as long as it lasts, it looks on at what leases and requests do

import inspect
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, wraps
from types import TracebackType
from typing import Any, Literal, Self, get_args

from .._acceleration import accelerated
from .._asgi.exchange import Exchange
from .._asgi.middleware import PoolMiddleware
from .._asgi.request import Route
from .._core.slot import Slot, Stack
from .._runtime.caller import acquiring_stack, has_ended
from .._runtime.engine import Engine
from .._runtime.holders import holder_name
from .._runtime.hooks import Hooks
from .._runtime.loan import Loan
from .._runtime.request_context import REQUEST
from ..errors import NotLeased, PoolConfigError, WouldDeadlock
from ..lease import Lease
from ..manager import ResourceManager, telling

Kind = Literal["stream", "outlives", "lost", "late", "second", "outbound", "uncommitted", "state"]

# What is wrong, and what to write instead.
TEXTS: dict[Kind, tuple[str, str]] = {
    "stream": (
        "holds a lease between two parts of its response, for as long as the client reads slowly",
        'read in a block, `async with pool.lease()`, or write Leased(pool, scope="function"), and send after that',
    ),
    "outlives": (
        "has ended, and its lease goes on",
        "work that outlives its request leases for itself, in a block, and the test waits until it is done",
    ),
    "lost": ("has dropped a lease without giving it back", "write `async with pool.lease()`"),
    "late": (
        "uses a resource after its lease has ended",
        "lease where it is used; a background task leases for itself",
    ),
    "second": (
        "takes a second lease of the same pool: if all requests hold one and wait for another, none goes on",
        "use the lease that the request has, as `Leased` does, or end the first one before",
    ),
    "outbound": (
        "makes an HTTP call while it holds a lease, for as long as the other service takes",
        "call first, or read in a block, `async with pool.lease()`, and call after that",
    ),
    "uncommitted": (
        "leaves work that is not committed, and that is undone",
        "commit it, as the log says, or roll back what is not wanted",
    ),
    "state": (
        "leaves state in its session, which the reset had to undo",
        "set it for all connections, as in `init` or the options, or for one transaction, as SET LOCAL does",
    ),
}
# The methods by which packages send HTTP requests.
CLIENTS = {
    "aiohttp": [("ClientSession", "_request")],
    "httpx": [("AsyncClient", "send"), ("Client", "send")],
    "requests": [("Session", "send")],
}
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class GuardError(AssertionError):
    """Leases were used in a way that the guard does not allow; the text says by which routes, and what to write."""


@dataclass(frozen=True)
class Finding:
    """One use of a lease that the guard does not allow.

    Attributes:
        kind: What is wrong, as a mark allows it.
        pool: The name of the pool.
        holder: The route, or what else holds the lease.
        place: Where the lease was taken, or the resource was used; a file and a line.
        state: What a lease has left, as "the setting search_path"; for "state".
    """

    kind: Kind
    pool: str
    holder: str
    place: str
    state: str = ""

    def __str__(self) -> str:
        what, remedy = TEXTS[self.kind]
        state = f": {self.state}" if self.state else ""
        return (
            f"pool {self.pool!r}: {self.holder} {what}{state} ({self.place}). Instead, {remedy}; or allow it, with a "
            f'reason: @pytest.mark.pool_guard_allow("{self.kind}", reason="...")'
        )


@dataclass(eq=False)
class _Use:
    """One lease, from its begin on."""

    engine: Engine[Any]
    slot: Slot[Any]
    request: Any
    stack: Stack
    turn: int = field(init=False)
    is_of_dependency: bool = field(init=False)
    loan: object = field(init=False)
    had_part: bool = False  # whether a part of the response was sent meanwhile

    def __post_init__(self) -> None:
        self.turn = self.slot.leases
        self.is_of_dependency = self.request is not None and isinstance(self.slot.holder, Route)
        self.loan = self.engine.inventory.loan_of(self.slot)

    @property
    def goes_on(self) -> bool:
        return self.slot.leases == self.turn and self.engine.inventory.taken.get(self.slot.key) is self.slot

    @property
    def is_lost(self) -> bool:
        return self.slot.lease is not None and has_ended(self.slot.lease())

    def finding(self, kind: Kind, state: str = "") -> Finding:
        place = _endpoint(self.request) if self.is_of_dependency else _place(self.stack)
        return Finding(kind, self.engine.name, self._holder(), place, state)

    def _holder(self) -> str:
        if self.request is not None:
            return str(self.request)
        if self.goes_on or not isinstance(self.loan, Loan):
            return holder_name(self.slot.holder, self.slot.lease)
        return holder_name(self.loan._holder, self.loan._lease)


class guard:  # noqa: N801 - a context manager that reads as a function, like `sandbox`
    """Fail a test whose requests use their leases in a way that fails under load.

    It looks on at all pools while the block runs, in all loops and threads, and raises at its end:

    - "stream": a request holds a lease between two parts of its response.
    - "outlives": a lease goes on when its request has ended.
    - "lost": a lease was dropped, or its task has ended, without giving it back.
    - "late": a resource is used after its lease, where the manager notices it.
    - "second": a request takes a second lease of one pool.
    - "outbound": a request makes a call by httpx, aiohttp or requests while it holds a lease.
    - "uncommitted": a lease ends with work that is not committed, where the manager notices it.
    - "state": a lease leaves state in its session that the reset had to undo, where the manager tells.

    Attributes:
        findings: What was found and is not allowed, each once.

    Example:
        ```python
        with guard(allow={"stream": "the export reads while it sends"}):
            client.get("/export")
        ```
    """

    _active: "guard | None" = None

    def __init__(self, *, allow: Mapping[Kind, str] | None = None) -> None:
        """Say what is allowed.

        Args:
            allow: The kinds that are allowed, each with a reason.

        Raises:
            PoolConfigError: If a kind is unknown, or has no reason.
        """
        self._allowed = dict(allow or {})
        for kind, reason in self._allowed.items():
            if kind not in get_args(Kind):
                raise PoolConfigError(f"guard: {kind!r} is no kind of finding; there are {', '.join(get_args(Kind))}")
            if not isinstance(reason, str) or not reason.strip():
                raise PoolConfigError(f"guard: {kind!r} is allowed with a reason, as allow={{{kind!r}: 'why'}}")
        self.findings: list[Finding] = []
        self._lock = threading.Lock()  # protects the findings and the uses
        self._uses: list[_Use] = []
        self._last: dict[int, _Use] = {}  # of each resource, its last lease, until it is changed
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        """Begin to look on.

        Raises:
            PoolConfigError: If a guard looks on already, or the pool runs compiled.
        """
        if guard._active is not None:
            raise PoolConfigError("guard: one looks on already, as --pool-guard does; there is one at a time")
        if accelerated:
            raise PoolConfigError(
                "guard: the pool runs compiled, and cannot be looked on at. Run the tests with CONNECTIONPOOLS_PURE=1 "
                "in their environment, or with --pool-guard, which sees to it"
            )
        guard._active = self
        self._patch(Lease, "_hold", self._around_hold)
        self._patch(Engine, "hand_over", self._around_hand_over)
        self._patch(Exchange, "send", self._around_send)
        self._patch(Exchange, "close", self._around_close)
        self._patch(Loan, "check", self._around_check)
        self._patch(Engine, "_note_failure", self._around_failure)
        self._patch(Loan, "warn", self._around_warn)
        self._patch(Hooks, "_hook", self._around_hook)
        self._patch(PoolMiddleware, "__call__", self._around_request)
        for package in CLIENTS.keys() & sys.modules.keys():
            for kind, name in CLIENTS[package]:
                self._patch(getattr(sys.modules[package], kind), name, self._around_call)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raise what was found, unless the block raises.

        Raises:
            GuardError: If something was found that is not allowed.
        """
        guard._active = None
        self._patches.close()
        for use in self._live():
            if use.is_lost:
                self._note(use.finding("lost"))
        self._uses.clear()
        self._last.clear()
        if self.findings and error is None:
            raise GuardError("\n".join(map(str, self.findings)))

    def _patch(self, kind: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        own = getattr(kind, name)
        setattr(kind, name, wraps(own)(around(own)))
        self._patches.callback(setattr, kind, name, own)

    def _note(self, finding: Finding) -> None:
        with self._lock:
            if finding.kind not in self._allowed and finding not in self.findings:
                self.findings.append(finding)

    def _live(self, request: Any = None) -> list[_Use]:
        """Return the leases that go on, of one request or all."""
        with self._lock:
            self._uses = [use for use in self._uses if use.goes_on]
            return [use for use in self._uses if request is None or use.request is request]

    def _begin(self, engine: Engine[Any], slot: Slot[Any]) -> None:
        request = REQUEST.get()
        use = _Use(engine, slot, request, acquiring_stack())
        if request is not None and any(other.engine is engine for other in self._live(request)):
            self._note(use.finding("second"))
        with self._lock:
            self._uses.append(use)
            self._last[id(slot.resource)] = use

    # --- what it looks on at ----------------------------------------------------------------

    def _around_hold(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def hold(lease: Any, slot: Slot[Any], owner: object) -> Any:
            lent = own(lease, slot, owner)
            self._begin(lease._engine, slot)
            return lent

        return hold

    def _around_hand_over(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def hand_over(engine: Engine[Any], slot: Slot[Any], owner: object) -> Any:
            lent = own(engine, slot, owner)
            self._begin(engine, slot)
            return lent

        return hand_over

    def _around_send(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def send(exchange: Any, message: Any) -> Any:
            if message["type"] == "http.response.body":
                for use in self._live(exchange):
                    if use.had_part:
                        self._note(use.finding("stream"))
                    use.had_part = True
            return own(exchange, message)

        return send

    def _around_close(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def close(exchange: Any) -> None:
            own(exchange)
            for use in self._live(exchange):
                self._note(use.finding("lost" if use.is_lost else "outlives"))

        return close

    def _around_check(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def check(loan: Any) -> None:
            try:
                own(loan)
            except NotLeased:
                request = REQUEST.get()
                name = str(request) if request is not None else holder_name(loan._holder, loan._lease)
                self._note(Finding("late", loan.pool, name, _place(acquiring_stack())))
                raise

        return check

    def _around_failure(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def note_failure(engine: Engine[Any], error: BaseException) -> None:
            if isinstance(error, WouldDeadlock) and (request := REQUEST.get()) is not None:
                self._note(Finding("second", engine.name, str(request), _place(acquiring_stack())))
            own(engine, error)

        return note_failure

    def _around_warn(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def warn(loan: Loan, text: str) -> None:
            own(loan, text)
            with self._lock:
                use = next((use for use in self._last.values() if use.loan is loan), None)
            if use is not None:
                self._note(use.finding("uncommitted"))

        return warn

    def _around_hook(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def hook(hooks: Hooks[Any], name: str) -> Callable[..., Any]:
            found: Callable[..., Any] = own(hooks, name)
            if name != "change":
                return found
            manager = getattr(found, "__self__", None)
            tell = telling(manager) if isinstance(manager, ResourceManager) and found == manager.change else found
            return partial(self._change_async if hooks.are_async else self._change, tell)

        return hook

    async def _change_async(self, change: Callable[[Any], Any], resource: Any) -> None:
        result = change(resource)
        self._changed(resource, await result if inspect.isawaitable(result) else result)

    def _change(self, change: Callable[[Any], Any], resource: Any) -> Any:
        result = change(resource)
        if inspect.isawaitable(result):  # which the pool does not know yet
            return result
        self._changed(resource, result)
        return None

    def _changed(self, resource: Any, told: Any) -> None:
        with self._lock:
            use = self._last.pop(id(resource), None)
        if use is not None and isinstance(told, list) and told:
            self._note(use.finding("state", ", ".join(told)))

    def _around_request(self, own: Callable[..., Any]) -> Callable[..., Any]:
        async def call(middleware: Any, scope: Any, *args: Any) -> None:
            await own(middleware, scope, *args)
            # A client that speaks to the application in this process waits until the request is over: so let it last
            # until the resources are changed.
            with self._lock:
                uses = [use for use in self._last.values() if use.is_of_dependency and use.request._scope is scope]
            for use in uses:
                await use.engine.wait_changed(use.slot, use.turn)

        return call

    def _around_call(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def send(client: Any, *args: Any, **options: Any) -> Any:
            request = REQUEST.get()
            if request is not None:
                for use in self._live(request):
                    self._note(use.finding("outbound"))
            return own(client, *args, **options)

        return send


def _place(stack: Stack) -> str:
    """Name the innermost line of the application among some calls."""
    own: Iterator[Any] = (call for call in stack if not call[0].startswith(LIBRARIES))
    file, line, function, _ = next(own, ("an unknown place", 0, "", None))
    return f"{file}, line {line}, in {function}" if line else file


def _endpoint(request: Any) -> str:
    """Name the endpoint of a request, whose dependency has leased."""
    code = getattr(request._scope.get("endpoint"), "__code__", None)
    return "its dependency" if code is None else f"{code.co_filename}, line {code.co_firstlineno}, in {code.co_name}"

"""OpenTelemetry shows waits in the traces of requests, and hooks begin no traces."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import FastAPI
from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from connectionpools_fastapi import ConnectionPool, Leased, PoolConfigError, PoolTimeout, install_pools
from connectionpools_fastapi._runtime.hook_context import HOOK_CONTEXT
from connectionpools_fastapi.otel import trace_pools
from connectionpools_fastapi.testing import started
from tests.support import held, loop_time, settled
from tests.web import Thing, ask, things

pytestmark = pytest.mark.anyio
virtual = pytest.mark.virtual_time

POOL = "db.client.connection.pool.name"
POSITION = "connectionpool.wait.position"
OUTCOME = "connectionpool.wait.outcome"


@pytest.fixture(autouse=True)
def _hooks_may_trace_again() -> Iterator[None]:
    """Undo what `trace_pools` does to the whole process: before a test too, since a page of the docs calls it."""
    HOOK_CONTEXT.run(attach, Context())
    yield
    HOOK_CONTEXT.run(attach, Context())


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test")


def waits(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == "acquire"]


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


@virtual
async def test_request_that_waits_gets_a_span_in_its_trace(exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    app = FastAPI()
    db = things(limit=1, clock=loop_time)
    install_pools(app, db)
    trace_pools(db, tracer=tracer)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(db)]) -> None:
        await anyio.sleep(2)

    async def request(served: Any, name: str) -> None:
        with tracer.start_as_current_span(name):
            await ask(served)

    async with started(app) as served, anyio.create_task_group() as group:
        for name in ("first", "second", "third"):
            group.start_soon(request, served, name)
            await settled()
    parents = {span.name: span.get_span_context() for span in exporter.get_finished_spans()}
    found = waits(exporter)
    assert [span.parent for span in found] == [parents["second"], parents["third"]]
    assert [seconds(span) for span in found] == pytest.approx([2.0, 4.0])
    assert [dict(span.attributes or {}) for span in found] == [
        {POOL: "db", POSITION: position, OUTCOME: "acquired"} for position in (1, 2)
    ]
    assert all(span.status.is_unset for span in found)


@virtual
@pytest.mark.parametrize(("threshold", "count"), [(0.0, 1), (2.0, 1), (2.1, 0)])
async def test_only_a_wait_from_the_threshold_on_is_a_span(
    threshold: float, count: int, exporter: InMemorySpanExporter, tracer: Tracer
) -> None:
    db = things(limit=1, min_free=1, clock=loop_time)
    trace_pools(db, threshold=threshold, tracer=tracer)

    async def use() -> None:
        async with db.lease():
            await anyio.sleep(2)

    with tracer.start_as_current_span("request"):
        async with db, anyio.create_task_group() as group:
            group.start_soon(use)
            group.start_soon(use)
    assert len(waits(exporter)) == count


@virtual
async def test_a_wait_outside_of_any_trace_is_no_span(exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    db = things(limit=1, clock=loop_time)
    trace_pools(db, threshold=0, tracer=tracer)
    async with db, anyio.create_task_group() as group, db.lease():
        group.start_soon(db.acquire)
        await anyio.sleep(2)
    assert exporter.get_finished_spans() == ()


@virtual
async def test_a_wait_in_vain_is_a_span_with_its_error(exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    db = things(limit=1, clock=loop_time)
    trace_pools(db, tracer=tracer)
    async with db, held(db):
        with tracer.start_as_current_span("request"):
            with pytest.raises(PoolTimeout):
                await db.acquire(timeout=3)
            with anyio.move_on_after(1):
                await db.acquire()
    timeout, cancelled = waits(exporter)
    for span, kind, waited in ((timeout, {"PoolTimeout"}, 3.0), (cancelled, {"CancelledError", "Cancelled"}, 1.0)):
        assert span.attributes is not None
        assert span.attributes[OUTCOME] == span.attributes["error.type"]
        assert span.attributes["error.type"] in kind
        assert not span.status.is_ok
        assert not span.status.is_unset
        assert span.events == ()
        assert seconds(span) == pytest.approx(waited)


async def test_a_thread_that_waits_gets_a_span(exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    db = things(limit=1)
    trace_pools(db, threshold=0, tracer=tracer)

    def use() -> None:
        with db.lease():
            pass

    async with db, anyio.create_task_group() as group, db.lease():
        with tracer.start_as_current_span("request"):
            group.start_soon(anyio.to_thread.run_sync, use)
        while not db.waiting:
            await anyio.lowlevel.checkpoint()
    (span,) = waits(exporter)
    assert span.parent is not None
    assert dict(span.attributes or {}) == {POOL: "db", POSITION: 1, OUTCOME: "acquired"}


@pytest.mark.parametrize("kind", ["async", "inline", "threads"])
async def test_hooks_begin_no_traces(kind: str, exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    def create() -> object:
        with tracer.start_as_current_span("connect"):
            return Thing()

    def check(_: object) -> bool:
        with tracer.start_as_current_span("ping"):
            return True

    def change(_: object) -> None:
        with tracer.start_as_current_span("reset"):
            pass

    async def create_async() -> object:
        return create()

    async def check_async(resource: object) -> bool:
        return check(resource)

    async def change_async(resource: object) -> None:
        change(resource)

    hooks: dict[str, Any] = {"create": create, "check": check, "change": change}
    if kind == "async":
        hooks = {"create": create_async, "check": check_async, "change": change_async}

    async def use() -> None:
        async with ConnectionPool(blocking=kind != "inline", check_after=0, **hooks) as pool:
            for _ in range(2):
                async with pool.lease():
                    pass

    await use()
    assert {span.name for span in exporter.get_finished_spans()} == {"connect", "ping", "reset"}
    exporter.clear()
    trace_pools(tracer=tracer)
    with tracer.start_as_current_span("request"):
        await use()
    assert [span.name for span in exporter.get_finished_spans()] == ["request"]


@pytest.mark.parametrize("threshold", [-1, "1", None])
def test_a_threshold_that_is_no_duration_is_refused(threshold: Any) -> None:
    with pytest.raises(PoolConfigError, match=r"trace_pools: threshold must be a number of seconds"):
        trace_pools(things(), threshold=threshold)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_collector_gets_the_span_by_otlp() -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        provider = TracerProvider(shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"http://127.0.0.1:{server.server_port}/v1/traces", timeout=10)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        try:
            await wait_once(provider.get_tracer("test"))
        finally:
            provider.shutdown()
            server.shutdown()
            thread.join()
    spans = [
        span
        for request in received
        for each in request.resource_spans
        for scope in each.scope_spans
        for span in scope.spans
    ]
    (wait,) = [span for span in spans if span.name == "acquire"]
    (request,) = [span for span in spans if span.name == "request"]
    assert (wait.trace_id, wait.parent_span_id) == (request.trace_id, request.span_id)
    told = {each.key: each.value for each in wait.attributes}
    assert (told[POOL].string_value, told[POSITION].int_value, told[OUTCOME].string_value) == ("db", 1, "acquired")


async def wait_once(tracer: Tracer) -> None:
    """Let one caller wait within a trace."""
    db = things(limit=1)
    trace_pools(db, threshold=0, tracer=tracer)

    async def use() -> None:
        with tracer.start_as_current_span("request"):
            async with db.lease():
                pass

    async with db, anyio.create_task_group() as group, db.lease():
        group.start_soon(use)
        await settled()

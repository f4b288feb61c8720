"""Back-ends for the recipes: an HTTP server with logins, a gRPC and an SSH server, in the loop of the test."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import grpc  # type: ignore[import-untyped] # has no types
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from benchmarks.faults.proxy import LOOPBACK

SECRET = "let-me-in"  # noqa: S105 - of a server that lives as long as a test
SOON = 20.0  # for what comes soon, or the test fails
LAST_TICK = b"2\n"  # of the gRPC server, before it ends or hangs


async def until(happened: Callable[[], bool]) -> None:
    """Give way to the others until something has happened."""
    async with asyncio.timeout(SOON):
        while not happened():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)


class Backend:
    """What a server of a test has seen, whatever it speaks."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.sessions: set[str] = set()


def with_logins(backend: Backend) -> FastAPI:
    """Make an application that is used through a login."""
    app = FastAPI()

    def session_of(request: Request) -> str:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in backend.sessions:
            raise HTTPException(401)
        return token

    @app.post("/login")
    async def login(request: Request) -> dict[str, str]:
        if (await request.json())["password"] != SECRET:
            raise HTTPException(401)
        backend.seen["login"] += 1
        token = f"{SECRET}-{backend.seen['login']}"
        backend.sessions.add(token)
        return {"token": token}

    @app.post("/logout")
    def logout(request: Request) -> None:
        backend.sessions.remove(session_of(request))

    @app.get("/session")
    def session(request: Request) -> None:
        session_of(request)

    @app.get("/report")
    def report(request: Request, response: Response) -> str:
        session_of(request)
        response.set_cookie("last", "report")
        return f"report after {request.cookies.get('last')}"

    @app.get("/hang")
    async def hang(request: Request) -> None:
        backend.seen["hang"] += 1
        while (await request.receive())["type"] != "http.disconnect":
            pass
        backend.seen["ended"] += 1

    return app


@asynccontextmanager
async def http_server(backend: Backend, _: Path | None = None) -> AsyncIterator[int]:
    """Run a server with logins; yield its port."""
    config = uvicorn.Config(with_logins(backend), port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    task = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started or task.done())
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


class Ticker(grpc.GenericRpcHandler):  # type: ignore[misc] # has no types
    """Calls without generated code."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def service(self, details: Any) -> Any:
        if details.method == "/ticker.Ticker/Peer":
            return grpc.unary_unary_rpc_method_handler(self._peer)
        return grpc.unary_stream_rpc_method_handler(self._watch)

    async def _peer(self, _: bytes, context: Any) -> bytes:
        peer: str = context.peer()
        return peer.encode()

    async def _watch(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        try:
            for number in range(3):
                yield b"%d\n" % number
            if request == b"for ever":
                await asyncio.sleep(SOON)
        finally:
            self._backend.seen["ended"] += 1


@asynccontextmanager
async def grpc_server(backend: Backend, _: Path) -> AsyncIterator[int]:
    """Run a gRPC server; yield its port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Ticker(backend),))
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    yield port
    await server.stop(None)


@asynccontextmanager
async def ssh_server(backend: Backend, folder: Path) -> AsyncIterator[int]:
    """Run an SSH server with a shell in the folder, where the key of its one user and its own are; yield its port."""

    async def shell(process: asyncssh.SSHServerProcess[str]) -> None:
        if process.command == "hang":
            backend.seen["hang"] += 1
            await process.wait_closed()
            backend.seen["ended"] += 1
            return
        words = ("/bin/sh", "-c", process.command or "")
        run = await asyncio.create_subprocess_exec(*words, cwd=folder, stdout=-1, stderr=-2)
        output, _ = await run.communicate()
        process.stdout.write(output.decode())
        process.exit(run.returncode or 0)

    host, user = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    user.write_private_key(folder / "key")
    (folder / "known_hosts").write_text(f"* {host.export_public_key().decode()}")
    server = await asyncssh.listen(
        LOOPBACK,
        0,
        server_host_keys=[host],
        authorized_client_keys=asyncssh.import_authorized_keys(user.export_public_key().decode()),
        process_factory=shell,
    )
    async with server:
        yield server.get_port()

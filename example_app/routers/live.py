"""Clicks as they happen, over a WebSocket."""

import asyncio
from contextlib import suppress

import anyio
from fastapi import APIRouter, WebSocket, WebSocketDisconnect, WebSocketException, status

from example_app.feed import LiveFeed
from example_app.models import Click

router = APIRouter()


@router.websocket("/live")
async def live(websocket: WebSocket, feed: LiveFeed) -> None:
    """Send each click to the page. It holds no lease: the task that counts a click puts it into the feed."""
    if not _is_own_page(websocket):
        raise WebSocketException(status.WS_1008_POLICY_VIOLATION)
    # Listening before accepting: a page that is told it is connected misses nothing.
    with feed.listen() as clicks:
        await websocket.accept()
        async with anyio.create_task_group() as group:
            group.start_soon(_send, websocket, clicks)
            while (await websocket.receive())["type"] != "websocket.disconnect":
                pass  # the page has nothing to say
            group.cancel_scope.cancel()


async def _send(websocket: WebSocket, clicks: asyncio.Queue[Click]) -> None:
    with suppress(WebSocketDisconnect):
        while True:
            await websocket.send_text((await clicks.get()).model_dump_json())


def _is_own_page(websocket: WebSocket) -> bool:
    """Refuse pages of other sites, which browsers let open any WebSocket."""
    origin = websocket.headers.get("origin")
    return origin is None or origin.partition("://")[2] == websocket.headers.get("host")

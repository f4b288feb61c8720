"""Observe: a client of PyMongo, by the driver's own events, and without a server."""

from typing import Any

import pymongo
import pytest
from pymongo import monitoring
from pymongo.errors import ServerSelectionTimeoutError

from connectionpools_fastapi import observe
from connectionpools_fastapi._monitoring.health import examine
from connectionpools_fastapi.adapters.pymongo import PoolEvents

pytestmark = pytest.mark.anyio

ONE, TWO = ("one.example", 27017), ("two.example", 27017)


@pytest.fixture
def events() -> PoolEvents:
    """Return events of a client that is open, with a pool of limit 2."""
    events = PoolEvents()
    events.pool_created(monitoring.PoolCreatedEvent(ONE, {"maxPoolSize": 2}))
    events.pool_ready(monitoring.PoolReadyEvent(ONE))
    return events


def check_out(events: PoolEvents, number: int, address: Any = ONE) -> None:
    """Tell what a client tells as it makes a connection and uses it."""
    events.connection_check_out_started(monitoring.ConnectionCheckOutStartedEvent(address))
    events.connection_created(monitoring.ConnectionCreatedEvent(address, number))
    events.connection_ready(monitoring.ConnectionReadyEvent(address, number, 0.1))
    events.connection_checked_out(monitoring.ConnectionCheckedOutEvent(address, number, 0.1))


def numbers(events: PoolEvents) -> tuple[Any, ...]:
    found = events.stats("mongo")
    return found.limit, found.free, found.taken, found.waiting


async def test_connections_are_counted_from_their_making_to_their_end(events: PoolEvents) -> None:
    events.connection_check_out_started(monitoring.ConnectionCheckOutStartedEvent(ONE))
    events.connection_created(monitoring.ConnectionCreatedEvent(ONE, 1))
    assert numbers(events) == (2, 0, 1, 1)
    events.connection_ready(monitoring.ConnectionReadyEvent(ONE, 1, 0.1))
    events.connection_checked_out(monitoring.ConnectionCheckedOutEvent(ONE, 1, 0.1))
    assert numbers(events) == (2, 0, 1, 0)
    events.connection_checked_in(monitoring.ConnectionCheckedInEvent(ONE, 1))
    assert numbers(events) == (2, 1, 0, 0)
    events.connection_closed(monitoring.ConnectionClosedEvent(ONE, 1, monitoring.ConnectionClosedReason.IDLE))
    assert numbers(events) == (2, 0, 0, 0)
    assert events.stats("mongo").create_failures == 0
    assert events.stats("mongo").driver["connectionCheckedOut"] == 1


async def test_saturated_client_warns(events: PoolEvents) -> None:
    pool = observe(events, name="mongo")
    assert (await examine(pool)).verdict == "pass"
    check_out(events, 1)
    check_out(events, 2)
    events.connection_check_out_started(monitoring.ConnectionCheckOutStartedEvent(ONE))
    found = await examine(pool)
    assert (found.verdict, found.reason) == ("warn", "saturated: 2 of 2 taken, 1 waiting")
    failed = monitoring.ConnectionCheckOutFailedReason.TIMEOUT
    events.connection_check_out_failed(monitoring.ConnectionCheckOutFailedEvent(ONE, failed, 1.0))
    assert pool.stats().driver["connectionCheckOutFailed"] == 1  # type: ignore[union-attr, unused-ignore]
    assert numbers(events) == (2, 0, 2, 0)


async def test_connection_that_is_never_ready_is_a_failure(events: PoolEvents) -> None:
    events.connection_created(monitoring.ConnectionCreatedEvent(ONE, 1))
    events.connection_closed(monitoring.ConnectionClosedEvent(ONE, 1, monitoring.ConnectionClosedReason.ERROR))
    check_out(events, 2)
    events.connection_closed(monitoring.ConnectionClosedEvent(ONE, 2, monitoring.ConnectionClosedReason.ERROR))
    assert events.stats("mongo").create_failures == 1
    assert numbers(events) == (2, 0, 0, 0)


async def test_servers_count_together_and_one_is_enough(events: PoolEvents) -> None:
    pool = observe(events, name="mongo")
    events.pool_created(monitoring.PoolCreatedEvent(TWO, {}))
    events.pool_ready(monitoring.PoolReadyEvent(TWO))
    check_out(events, 1)
    check_out(events, 1, TWO)
    assert numbers(events) == (102, 0, 2, 0)
    events.pool_cleared(monitoring.PoolClearedEvent(ONE))
    assert (await examine(pool, max_age=0)).verdict == "pass"
    events.pool_cleared(monitoring.PoolClearedEvent(TWO))
    assert (await examine(pool, max_age=-1)).verdict == "fail"
    events.pool_ready(monitoring.PoolReadyEvent(TWO))
    assert (await examine(pool, max_age=-1)).verdict == "pass"


async def test_pool_without_limit_has_none() -> None:
    events = PoolEvents()
    events.pool_created(monitoring.PoolCreatedEvent(ONE, {"maxPoolSize": 0}))
    assert numbers(events) == (None, 0, 0, 0)


async def test_client_without_a_server_fails_and_closes() -> None:
    """The driver itself, which finds no server."""
    events = PoolEvents()
    pool = observe(events, name="mongo")
    assert (await examine(pool)).reason == "the pool is not open (new)"
    client: Any = pymongo.MongoClient("127.0.0.1", 1, event_listeners=[events], serverSelectionTimeoutMS=100)
    with pytest.raises(ServerSelectionTimeoutError):
        client.admin.command("ping")
    found = await examine(pool)
    assert (found.verdict, found.stats.status, found.stats.limit) == ("fail", "open", 100)
    assert "127.0.0.1" not in repr(pool) + repr(found)
    client.close()
    assert (await examine(pool)).reason.startswith("the pool is not open (closed)")
    events.connection_checked_in(monitoring.ConnectionCheckedInEvent(("127.0.0.1", 1), 1))  # too late
    assert numbers(events) == (None, 0, 0, 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_async_client_is_open_from_its_first_connection_on() -> None:
    events = PoolEvents()
    client: Any = pymongo.AsyncMongoClient("127.0.0.1", 1, event_listeners=[events])
    async with client:
        assert events.stats("mongo").status == "new"
        await client.aconnect()
        assert events.stats("mongo").status == "open"
    assert events.stats("mongo").status == "closed"

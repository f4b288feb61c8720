"""All resources can be replaced while the pool is in use."""

import anyio
import pytest

from tests.support import Backend, assert_nothing_is_lost, check, same, settled


@pytest.mark.anyio
async def test_expire_retires_leased_ones_as_they_come_back() -> None:
    """The free ones are retired at once."""
    backend = Backend()
    pool = backend.pool(limit=3)
    await pool.open()
    held, free = await pool.acquire(), await pool.acquire()
    await pool.release(free)

    pool.expire()
    await settled()
    assert same(backend.cleaned, [free])
    assert (pool.free, pool.taken, pool.status) == (0, 1, "open")

    await pool.release(held)
    await settled()
    assert same(backend.cleaned, [free, held])
    assert pool.stats().discards["expire"] == 2
    check(pool)
    await assert_nothing_is_lost(pool, backend)


@pytest.mark.anyio
async def test_callers_get_only_new_resources_after_expire() -> None:
    """No caller fails while all resources are replaced."""
    backend = Backend()
    pool = backend.pool("check", "change", limit=3)
    await pool.open()
    replaced_from = 10**9
    served = 0

    async def use() -> None:
        nonlocal served
        for _ in range(20):
            must_be_new = served >= replaced_from
            async with pool.lease() as resource:
                assert not must_be_new or resource.number >= created_before
                await settled()
            served += 1

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(use)
        while served < 30:
            await settled()
        created_before = len(backend.created)
        pool.expire()
        replaced_from = served
    assert served == 120
    assert same(backend.cleaned[:created_before], backend.created[:created_before])
    await assert_nothing_is_lost(pool, backend)

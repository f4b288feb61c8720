"""HostBudget below pools: its sockets, and members that are stopped."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from connectionpools_fastapi import PoolConfigError
from connectionpools_fastapi.budgets.host import HostBudget, HostMembership
from tests.budgets.support import LONG, until
from tests.support import Backend

pytestmark = pytest.mark.anyio


@pytest.fixture
def budget(tmp_path: Path) -> Callable[..., HostBudget]:
    """Return a function that makes budgets of one name."""

    def make(total: int, **options: Any) -> HostBudget:
        return HostBudget("orders", total=total, directory=tmp_path / "tokens", **options)

    return make


Budgets = Callable[..., HostBudget]


async def test_close_leaves_no_address(budget: Budgets, tmp_path: Path) -> None:
    async with Backend().pool(budget=budget(1)):
        pass
    await until(lambda: [path.name for path in (tmp_path / "tokens").iterdir()] == ["orders.tokens"])


class Neighbour:
    """A member that notes what it is asked, and gives a token back only if it is a good one."""

    pool = "neighbour"

    def __init__(self, tasks: TaskGroup, *, is_good: bool) -> None:
        self.tasks = tasks
        self.is_good = is_good
        self.asked: list[int | None] = []
        self.share: HostMembership

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.tasks.start_soon(job)

    async def take(self, budget: HostBudget, number: int) -> None:
        self.share = await budget.join(self)
        for _ in range(number):
            await self.share.take()

    def give_way(self, level: int | None, count: int = 1) -> None:
        self.asked += [level] * count
        if self.is_good and level is not None:
            self.share.give_back()


async def test_next_richest_is_asked_if_the_richest_gives_nothing(budget: Budgets) -> None:
    async with anyio.create_task_group() as tasks:
        stopped, good, poor = (Neighbour(tasks, is_good=is_good) for is_good in (False, True, False))
        for neighbour, number in ((stopped, 4), (good, 3), (poor, 1)):
            await neighbour.take(budget(8), number)
        pool = Backend().pool(budget=budget(8))
        async with pool:
            async with pool.lease(timeout=LONG):  # asked again and again, although the pool cancels its calls
                assert 1 in stopped.asked
                assert good.asked[-1] == 1
                assert not any(poor.asked)
            for neighbour in (stopped, good, poor):
                neighbour.share.leave()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 0}, "total must be a whole number, 1 or more; got 0"),
        ({"total": True}, "total must be a whole number"),
        ({"total": 1, "floor": -1}, "floor must be a whole number, 0 or more; got -1"),
        ({"total": 1, "name": "a/b"}, "a budget's name must be"),
        ({"total": 1, "directory": "/" + "d" * 110}, "too long"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PoolConfigError, match=message):
        HostBudget(**{"name": "orders", **arguments})

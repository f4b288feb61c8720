"""The parts that decisions are made with, each alone: queue, generations, outage, upkeep, waiters, holders."""

import asyncio
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import trio

from connectionpools_fastapi import WrongEventLoop
from connectionpools_fastapi._core.backoff import Backoff
from connectionpools_fastapi._core.generations import LOST, Generations
from connectionpools_fastapi._core.held_leases import LeaseSnapshot, owner_of
from connectionpools_fastapi._core.maintenance import Maintenance
from connectionpools_fastapi._core.policy import Policy
from connectionpools_fastapi._core.slot import Slot
from connectionpools_fastapi._core.wait_queue import WATCH_AFTER, WaitQueue
from connectionpools_fastapi._runtime.caller import acquiring_stack, current_task
from connectionpools_fastapi._runtime.holders import describe_held, name_of, named
from connectionpools_fastapi._runtime.reports import acquired_at
from connectionpools_fastapi._runtime.waiters import AsyncioWaiter, TaskWaiter, ThreadWaiter
from connectionpools_fastapi.errors import own
from tests.state_harness import Lease, Named, Patient, StateHarness
from tests.support import Caller, Resource

NEVER = float("inf")


# --- the queue ----------------------------------------------------------------------------------


def waiter(deadline: float | None = None, owner: object = None) -> Caller:
    caller = Caller()
    caller.deadline, caller.owner = deadline, owner
    return caller


def queue_of(*callers: Caller) -> WaitQueue[Resource]:
    queue: WaitQueue[Resource] = WaitQueue()
    for caller in callers:
        queue.join(caller)
    return queue


def test_wait_queue_head_is_the_first_to_join() -> None:
    """Any waiter may leave; the next in order becomes the head."""
    first, second, third = waiter(), waiter(), waiter()
    queue = queue_of(first, second, third)
    assert (len(queue), list(queue), queue.head()) == (3, [first, second, third], first)
    queue.leave(second)
    assert list(queue) == [first, third]
    assert second not in queue
    assert third in queue
    queue.leave(first)
    assert queue.head() is third
    queue.leave(third)
    assert not queue


def test_owner_is_queued_until_its_last_waiter_leaves() -> None:
    one, other = object(), object()
    first, second, third = waiter(owner=one), waiter(owner=one), waiter(owner=other)
    queue = queue_of(first, second, third)
    assert queue.has_one_of(one)
    queue.leave(first)
    assert queue.has_one_of(one)
    queue.leave(second)
    assert not queue.has_one_of(one)
    assert queue.has_one_of(other)
    queue.join(waiter(owner=one))
    assert queue.has_one_of(one)


def test_waiter_that_left_drops_its_owner_and_request() -> None:
    caller = waiter(deadline=50.0, owner=object())
    caller.request = object()
    queue_of(caller).leave(caller)
    assert (caller.owner, caller.request) == (None, None)


def test_overdue_orders_waiters_by_deadline_then_arrival() -> None:
    late, early, never, also_early = waiter(3.0), waiter(1.0), waiter(), waiter(1.0)
    queue = queue_of(late, early, never, also_early)
    assert queue.due == 1.0
    assert list(queue.overdue(0.99)) == []
    assert list(queue.overdue(1.0)) == [early, also_early]
    assert queue.due == 3.0
    assert list(queue.overdue(9.0)) == [late]
    assert queue.due == NEVER
    assert len(queue) == 4, "to name them is not to let them go"


def test_waiter_that_left_is_neither_overdue_nor_due() -> None:
    gone, also_gone, there = waiter(1.0), waiter(2.0), waiter(3.0)
    queue = queue_of(gone, also_gone, there)
    queue.leave(gone)
    queue.leave(also_gone)
    assert list(queue.overdue(0.0)) == []
    assert queue.due == 1.0, "to look too early costs nothing but the look"
    assert list(queue.overdue(1.0)) == []
    assert queue.due == 3.0
    assert list(queue.overdue(3.0)) == [there]


def test_deadline_of_a_brief_waiter_is_never_noted() -> None:
    """The waiter leaves before its deadline is looked at."""
    queue = queue_of(waiter(5.0))
    for number in range(100):
        caller = waiter(float(number))
        queue.join(caller)
        queue.leave(caller)
    assert queue.due == 0.0, "to look too early costs nothing but the look"
    assert list(queue.overdue(1.0)) == []
    assert (queue.due, len(queue._deadlines)) == (5.0, 1)


def test_look_at_clients_notes_no_deadlines() -> None:
    caller = waiter(5.0)
    client: Any = object()
    caller.client = client
    queue = queue_of(caller)
    assert list(queue.unwatched(WATCH_AFTER)) == [caller]
    assert list(queue.overdue(WATCH_AFTER)) == []
    assert (queue.due, len(queue._deadlines)) == (5.0, 0)
    assert list(queue.overdue(5.0)) == [caller]


def test_stale_deadlines_are_dropped_in_batches() -> None:
    queue = queue_of(waiter(1.0), waiter(), waiter())  # the first of them is in no hurry to leave
    kept = []
    for number in range(100):
        caller, brief = waiter(100.0 + number), waiter(0.0)
        for newcomer in (caller, brief):
            queue.join(newcomer)
        queue.leave(brief)  # a deadline that seems to have come makes the queue look at all of them
        assert list(queue.overdue(0.0)) == []
        kept.append(len(queue._deadlines))
        queue.leave(caller)
    # At most two for each of the four that wait, and 64.
    assert kept == [*range(2, 73), *range(2, 31)]


def test_gaps_of_waiters_that_left_are_closed_in_batches() -> None:
    first = waiter()
    queue = queue_of(first)
    for _ in range(1000):
        caller = waiter()
        queue.join(caller)
        queue.leave(caller)
        assert len(queue._waiters) <= 2 * 2 + 64
    last = waiter()
    queue.join(last)
    assert list(queue) == [first, last]


def test_leaving_waiter_is_no_longer_listed_as_unwatched() -> None:
    queue = queue_of()
    for _ in range(100):
        caller = waiter()
        caller.client = Patient()
        queue.join(caller)
        queue.leave(caller)
    assert len(queue._unwatched) == 0


def test_waiter_that_left_the_middle_is_not_watched() -> None:
    callers = [waiter(), waiter(), waiter()]
    for caller in callers:
        caller.client = Patient()
    queue = queue_of(*callers)
    queue.leave(callers[1])
    assert list(queue.unwatched(WATCH_AFTER / 2)) == []
    assert list(queue.unwatched(WATCH_AFTER)) == [callers[0], callers[2]]
    assert list(queue.unwatched(WATCH_AFTER)) == [], "each is watched once"


def test_dropping_deadlines_keeps_the_others_in_order() -> None:
    # As they stand in the heap: without the two earliest ones, what is left is no heap any more.
    first, late, second, *others = callers = [
        waiter(deadline) for deadline in (1.0, 100.0, 2.0, 200.0, 201.0, 3.0, 4.0)
    ]
    queue = queue_of(*callers)
    assert list(queue.overdue(0.0)) == []
    queue.leave(first)
    queue.leave(second)
    gone = [waiter(1000.0) for _ in range(100)]
    for caller in gone:
        queue.join(caller)
    queue._note_deadlines()
    for caller in gone:
        queue.leave(caller)
    queue._note_deadlines()
    assert len(queue._deadlines) == len(queue)
    assert [caller.deadline for caller in queue.overdue(500.0)] == [3.0, 4.0, 100.0, 200.0, 201.0]
    assert len(queue) == 1 + len(others)
    assert late in queue


# --- generations --------------------------------------------------------------------------------


def test_a_new_generation_retires_the_one_before() -> None:
    generations: Generations[Resource] = Generations()
    assert generations.enter() == 0
    assert generations.next() == 0
    assert generations.enter() == 1
    assert generations.enter() == 1
    assert generations.next() == 1
    assert [generations.population(number) for number in range(3)] == [1, 2, 0]
    assert generations.total() == 3


def test_older_generations_turn_over_until_all_are_gone() -> None:
    generations: Generations[Resource] = Generations()
    assert not generations.are_turning_over()
    generations.enter()
    assert not generations.are_turning_over()
    generations.next()
    assert generations.are_turning_over()
    generations.enter()
    assert generations.are_turning_over()
    generations.leave(0)
    assert not generations.are_turning_over()


def test_generation_watcher_waits_for_older_ones_too() -> None:
    """It is named once, when the last of them is gone."""
    generations: Generations[Resource] = Generations()
    generations.enter()
    generations.next()
    generations.enter()
    generations.enter()
    generations.next()
    generations.enter()
    first, both, forgotten = Caller(), Caller(), Caller()
    generations.watch(first, 0)
    generations.watch(both, 1)
    generations.watch(forgotten, 1)
    generations.forget(forgotten)
    assert generations.leave(1) == []
    assert generations.leave(1) == [], "the first one is still there"
    assert not generations.is_gone(0)
    assert not generations.is_gone(1)
    assert generations.leave(0) == [first, both]
    assert generations.is_gone(1)
    assert not generations.is_gone(2)
    assert generations.leave(2) == []


def test_watcher_of_later_generation_outlasts_older_one() -> None:
    generations: Generations[Resource] = Generations()
    generations.enter()
    generations.next()
    generations.enter()
    early, late = Caller(), Caller()
    generations.watch(late, 1)
    generations.watch(early, 0)
    assert generations.leave(0) == [early]
    assert generations.leave(1) == [late]


def test_lost_generation_is_counted_but_not_waited_for() -> None:
    """It turns over, too."""
    generations: Generations[Resource] = Generations()
    assert generations.enter_lost() == LOST
    assert generations.total() == 1
    assert generations.population(LOST) == 1
    assert generations.is_gone(10**9)
    assert generations.are_turning_over()
    generations.leave(LOST)
    assert generations.total() == 0


# --- outage -------------------------------------------------------------------------------------


def note(outage: Backoff, now: float, *, cause: BaseException | None = None, wanted: bool = True) -> bool:
    return outage.note(cause or OSError(), known=outage.noted, now=now, wanted=wanted)


def test_backoff_pauses_start_at_zero_and_double_to_a_cap() -> None:
    for wanted, pauses in (
        (True, [0, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5]),
        (False, [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0]),
    ):
        outage = Backoff(lambda: 0.0)
        for number, pause in enumerate(pauses):
            now = 10.0 * (number + 1)
            assert note(outage, now, wanted=wanted)
            assert outage.retry_at == pytest.approx(now + pause)
            assert outage.failures == number + 1
        outage.ask()
        assert outage.retry_at == now + 0.5, "a caller has come"


def test_cancelled_create_is_not_retried_at_once() -> None:
    outage = Backoff(lambda: 0.0)
    note(outage, 10.0, cause=asyncio.CancelledError())
    assert outage.retry_at == pytest.approx(10.1)


def test_three_tenths_of_each_pause_are_left_to_chance() -> None:
    for chance, pause in ((0.0, 0.1), (0.5, 0.085), (1.0, 0.07)):
        outage = Backoff(lambda chance=chance: chance)  # type: ignore[misc]
        note(outage, 10.0)
        note(outage, 10.0)
        assert outage.retry_at == pytest.approx(10.0 + pause)


def test_failure_begun_before_the_last_only_sets_cause() -> None:
    outage = Backoff(lambda: 0.0)
    first, second, third = OSError(1), OSError(2), OSError(3)
    assert outage.note(first, known=0, now=5.0, wanted=True)
    assert not outage.note(second, known=0, now=6.0, wanted=True)
    assert (outage.failures, outage.retry_at, outage.cause) == (1, 5.0, second)
    assert outage.note(third, known=1, now=7.0, wanted=True)
    assert (outage.failures, outage.retry_at, outage.cause) == (2, 7.1, third)


def test_first_failure_counts_and_success_resets_backoff() -> None:
    """The first failure counts whenever its create began."""
    outage = Backoff(lambda: 0.0)
    note(outage, 5.0)
    note(outage, 5.0)
    outage.end()
    assert (outage.failures, outage.cause, outage.down_at) == (0, None, NEVER)
    assert outage.note(OSError(), known=0, now=6.0, wanted=True)
    assert (outage.failures, outage.retry_at, outage.down_at) == (1, 6.0, NEVER)


def test_back_end_is_down_a_second_after_first_failure() -> None:
    """It takes a second failure."""
    outage = Backoff(lambda: 0.0)
    note(outage, 5.0)
    assert outage.down_at == NEVER
    note(outage, 5.3)
    note(outage, 5.9)
    assert outage.down_at == 6.0
    outage.begin_anew()
    assert (outage.failures, outage.down_at) == (3, NEVER)
    assert outage.retry_at < 0
    note(outage, 7.0)
    assert outage.down_at == NEVER
    note(outage, 7.1)
    assert outage.down_at == 8.0


def test_back_end_is_down_at_once_for_a_mistake() -> None:
    outage = Backoff(lambda: 0.0)
    note(outage, 5.0, cause=TypeError())
    assert outage.is_mistake
    assert outage.down_at == 5.0
    note(outage, 6.0)
    assert not outage.is_mistake
    assert outage.down_at == 6.0
    note(outage, 6.0, cause=own(WrongEventLoop()))
    assert outage.is_mistake


def test_an_outage_may_last_for_any_number_of_tries() -> None:
    outage = Backoff(lambda: 0.0)
    outage.failures = 10_000
    note(outage, 2.0)
    assert outage.retry_at == 2.5


def test_retry_after_is_never_zero() -> None:
    outage = Backoff(lambda: 0.0)
    note(outage, 1.0)
    note(outage, 2.0)
    assert outage.retry_after(2.0) == pytest.approx(0.1)
    assert outage.retry_after(3.0) == 0.05, "it is under way"


# --- upkeep -------------------------------------------------------------------------------------


Enter = Callable[[float], Slot[Resource]]


def upkeep_of(chance: float = 0.0, **options: Any) -> tuple[Maintenance[Resource], Enter, dict[int, Slot[Resource]]]:
    """Return an upkeep, what enters a new slot into it, and all slots that exist."""
    slots: dict[int, Slot[Resource]] = {}
    kept = []
    upkeep = Maintenance(Policy(**options), slots, lambda: chance)

    def enter(now: float) -> Slot[Resource]:
        slot = Slot(Resource(len(slots)), 0, now)
        kept.append(slot)  # so that no other one has its key
        slots[slot.key] = slot
        upkeep.enter(slot, now)
        return slot

    return upkeep, enter, slots


def test_nothing_is_looked_at_where_nothing_is_asked_for() -> None:
    upkeep, enter, _ = upkeep_of()
    slot = enter(100.0)
    assert upkeep.next_deadline() == NEVER
    assert upkeep._entries == []
    assert list(upkeep.due(1e9)) == []
    assert upkeep.why_retire(slot, 1e9) is None
    assert not upkeep.is_idle(slot, 1e9)
    assert not upkeep.is_unchecked(slot, 1e9)
    assert not upkeep.retires


def test_lifetime_ends_within_its_last_quarter() -> None:
    for chance, lifetime in ((0.0, 10.0), (0.5, 8.75), (1.0, 7.5)):
        upkeep, enter, _ = upkeep_of(chance, max_lifetime=10.0)
        slot = enter(100.0)
        assert upkeep.retires
        assert slot.retire_at == upkeep.next_deadline() == 100.0 + lifetime
        assert upkeep.why_retire(slot, 100.0 + lifetime - 0.01) is None
        assert upkeep.why_retire(slot, 100.0 + lifetime) == "max_lifetime"


@pytest.mark.parametrize("number", [4, 8, 20, 100])
def test_lifetimes_begun_together_end_apart(number: int) -> None:
    for chance in (0.0, 0.3, 0.9):
        _, enter, _ = upkeep_of(chance, max_lifetime=1000.0)
        ends = sorted(enter(100.0).retire_at for _ in range(number))
        assert 850.0 <= ends[0] <= ends[-1] <= 1100.0
        # "At one moment" is within a fortieth of the lifetime.
        assert max(sum(first <= each < first + 25 for each in ends) for first in ends) <= number / 4


def test_a_resource_retires_after_so_many_uses() -> None:
    upkeep, enter, _ = upkeep_of(max_uses=3)
    slot = enter(100.0)
    assert upkeep.retires
    assert upkeep.next_deadline() == NEVER
    for leases, reason in ((2, None), (3, "max_uses"), (4, "max_uses")):
        slot.leases = leases
        assert upkeep.why_retire(slot, 1e9) == reason


def test_slot_unused_for_its_pace_is_idle() -> None:
    for chance, limit in ((0.0, 10.0), (1.0, 9.0)):
        upkeep, enter, _ = upkeep_of(chance, max_idle=10.0)
        slot = enter(100.0)
        assert not upkeep.retires
        assert upkeep.next_deadline() == 100.0 + limit
        slot.since = 104.0
        assert not upkeep.is_idle(slot, 104.0 + limit - 0.01)
        assert upkeep.is_idle(slot, 104.0 + limit)


def test_slot_not_used_or_checked_for_its_pace_is_quiet() -> None:
    for chance, limit in ((0.0, 10.0), (1.0, 9.0)):
        upkeep, enter, _ = upkeep_of(chance, keepalive=10.0)
        slot = enter(100.0)
        assert upkeep.next_deadline() == 100.0 + limit
        for slot.since, slot.checked_at in ((104.0, 101.0), (101.0, 104.0)):
            assert not upkeep.is_unchecked(slot, 104.0 + limit - 0.01)
            assert upkeep.is_unchecked(slot, 104.0 + limit)


def test_slot_is_due_at_the_first_of_its_times() -> None:
    upkeep, enter, _ = upkeep_of(max_lifetime=10.0, max_idle=4.0, keepalive=3.0)
    slot = enter(100.0)
    looks = []
    for _ in range(6):
        looks.append(upkeep.next_deadline())
        assert list(upkeep.due(looks[-1])) == [slot]
        upkeep.schedule(slot, looks[-1])
    # Quiet, then idle, quiet again; its lifetime ends; then what is over for long, each once more.
    assert looks == [103.0, 104.0, 107.0, 110.0, 113.0, 116.0]


def test_overdue_slot_is_due_again_after_the_same_time() -> None:
    for option in ("max_idle", "keepalive"):
        upkeep, enter, _ = upkeep_of(1.0, **{option: 10.0})
        slot = enter(100.0)
        upkeep.schedule(slot, 104.0)
        assert slot.due_at == 109.0, "it is not over yet"
        upkeep.schedule(slot, 109.0)
        assert slot.due_at == 118.0
    upkeep, enter, _ = upkeep_of(max_lifetime=4.0)
    slot = enter(100.0)
    upkeep.schedule(slot, 104.0)
    assert slot.due_at == NEVER, "a lifetime ends once"


def test_slot_scheduled_twice_for_one_time_is_due_once() -> None:
    upkeep, enter, _ = upkeep_of(max_idle=4.0)
    slot = enter(100.0)
    upkeep.schedule(slot, 101.0)
    assert list(upkeep.due(104.0)) == [slot]


def test_what_is_due_is_named_in_its_order_and_once() -> None:
    upkeep, enter, _ = upkeep_of(max_idle=4.0)
    late, early, other = enter(102.0), enter(100.0), enter(109.0)
    assert list(upkeep.due(103.99)) == []
    assert list(upkeep.due(106.0)) == [early, late]
    assert list(upkeep.due(106.0)) == []
    assert upkeep.next_deadline() == other.due_at == 113.0


def test_what_is_gone_or_has_another_time_by_now_is_not_due() -> None:
    slots: dict[int, Slot[Resource]] = {}
    upkeep = Maintenance(Policy(max_idle=4.0), slots, lambda: 0.0)
    gone, moved = Slot(Resource(0), 0, 100.0), Slot(Resource(1), 0, 101.0)
    for slot in (gone, moved):
        slots[slot.key] = slot
        upkeep.enter(slot, slot.since)
    del slots[gone.key]
    moved.since = 103.0
    upkeep.schedule(moved, 103.0)
    assert upkeep.next_deadline() == 107.0
    assert list(upkeep.due(106.9)) == []
    assert list(upkeep.due(107.0)) == [moved]
    assert upkeep.next_deadline() == NEVER


def test_what_is_due_at_one_moment_is_in_the_order_of_entry() -> None:
    resources = sorted(map(Resource, range(5)), key=id, reverse=True)  # their addresses say otherwise
    slots = {id(resource): Slot(resource, 0, 100.0) for resource in resources}
    upkeep = Maintenance(Policy(max_idle=4.0), slots, lambda: 0.0)
    for slot in slots.values():
        upkeep.enter(slot, 100.0)
    assert list(upkeep.due(104.0)) == list(slots.values())


def test_entries_of_gone_slots_are_dropped_in_batches() -> None:
    upkeep, enter, slots = upkeep_of(max_idle=4.0)
    stay = [enter(900.0) for _ in range(3)]
    kept = []
    for number in range(100):
        gone = enter(1000.0 + number)
        kept.append(len(upkeep._entries))
        del slots[gone.key]
    # At most two for each of the four that exist, and 64; the three that stay are kept.
    assert kept == [*range(4, 73), *range(4, 35)]
    assert {id(slot) for slot in upkeep.due(5000.0)} == {id(slot) for slot in stay}


def test_when_looks_are_dropped_the_others_stay_in_order() -> None:
    # As they stand in the heap: without the two earliest ones, what is left is no heap any more.
    upkeep, enter, slots = upkeep_of(max_idle=4.0)
    first, late, second, *others = [enter(since) for since in (1.0, 100.0, 2.0, 200.0, 201.0, 3.0, 4.0)]
    del slots[first.key], slots[second.key]
    while len(upkeep._entries) >= 7:
        gone = enter(1000.0)
        del slots[gone.key]
    assert list(upkeep.due(500.0)) == [others[2], others[3], late, others[0], others[1]]


# --- waiters ------------------------------------------------------------------------------------


async def parked(waiter: TaskWaiter[Resource]) -> None:
    await waiter.parked


def test_task_waiter_wakes_at_once_only_within_its_loop() -> None:
    """From elsewhere it is woken through the loop."""
    loop = asyncio.new_event_loop()
    try:
        outside: AsyncioWaiter[Resource] = AsyncioWaiter.of(loop)
        assert (outside.slot, outside.error) == (None, None)
        outside.wake()
        assert not outside.parked.done(), "a future belongs to its loop"
        loop.run_until_complete(parked(outside))

        async def within() -> None:
            inside: AsyncioWaiter[Resource] = AsyncioWaiter.of(loop)
            inside.wake()
            assert inside.parked.done()
            await inside.parked

        loop.run_until_complete(within())
        other = asyncio.new_event_loop()
        try:
            foreign: AsyncioWaiter[Resource] = AsyncioWaiter.of(loop)

            async def elsewhere() -> None:
                foreign.wake()
                assert not foreign.parked.done()

            other.run_until_complete(elsewhere())
            loop.run_until_complete(parked(foreign))
        finally:
            other.close()
    finally:
        loop.close()


def test_task_waiter_waits_until_it_is_woken() -> None:
    """A cancelled one may be woken, too."""

    async def main() -> None:
        waiter: AsyncioWaiter[Resource] = AsyncioWaiter.of(asyncio.get_running_loop())
        task = asyncio.create_task(parked(waiter))
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waiter.wake()

    asyncio.run(main())


def test_thread_waiter_waits_until_woken_or_time_is_over() -> None:
    waiter: ThreadWaiter[Resource] = ThreadWaiter()
    assert (waiter.slot, waiter.error) == (None, None)
    assert not waiter.wait(0.0)
    waiter.wake()
    assert waiter.wait(0.0)
    waiter.wake()
    assert waiter.wait(None)
    waiter.wake()
    assert waiter.wait(1e12), "longer than any lock can wait"


def test_thread_waiter_without_timeout_waits_for_ever() -> None:
    """With a timeout it waits no longer than that."""
    asked = []

    class Lock:
        def acquire(self, *, timeout: float) -> bool:
            asked.append(timeout)
            return True

    waiter: ThreadWaiter[Resource] = ThreadWaiter()
    waiter._parked = Lock()  # type: ignore[assignment] # how long it would wait cannot be seen without waiting
    for timeout in (None, 2.5, 1e12):
        waiter.wait(timeout)
    assert asked == [-1, 2.5, threading.TIMEOUT_MAX]


def test_new_waiter_has_no_deadline_and_no_outcome() -> None:
    caller = Caller()
    assert (caller.asked_at, caller.deadline, caller.waits) == (0.0, None, False)
    assert (caller.owner, caller.request, caller.slot, caller.error) == (None, None, None, None)


# --- leases that are held -----------------------------------------------------------------------------


def test_current_task_is_found_only_within_a_task() -> None:
    assert current_task() is None
    found = []

    async def main() -> object:
        asyncio.get_running_loop().call_soon(lambda: found.append(current_task()))
        await asyncio.sleep(0)
        return current_task() is asyncio.current_task() is not None

    assert asyncio.run(main())
    assert found == [None], "a callback is no task"


def test_the_running_task_of_trio_is_found() -> None:
    async def main() -> bool:
        return current_task() is trio.lowlevel.current_task()

    assert trio.run(main)


def test_current_task_works_without_trio_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trio")
    assert current_task() is None


def test_slot_has_an_owner_only_while_its_lease_lives() -> None:
    slot = Slot(Resource(0), 0, 0.0)
    assert owner_of(slot) is None
    owner = object()
    lease = Lease(owner)
    slot.lease = weakref.ref(lease)
    assert owner_of(slot) is owner
    del lease
    assert owner_of(slot) is None
    thread = threading.current_thread()
    slot.lease = weakref.ref(thread)
    assert owner_of(slot) is None, "a lease made by hand has no block"


def test_holder_is_named_as_told_or_after_task_or_thread() -> None:
    slot = Slot(Resource(0), 0, 100.0)
    assert named(LeaseSnapshot.of(slot, 103.0)).name == "a holder that is gone"
    by_hand = Named("a thread")
    slot.lease = weakref.ref(by_hand)
    hold = LeaseSnapshot.of(slot, 103.0)
    assert (named(hold).name, named(hold).age, describe_held(hold)) == (
        "a thread",
        3.0,
        "a thread has held a resource for 3 s",
    )
    lease = Lease(Named("a task"))
    slot.lease = weakref.ref(lease)
    assert named(LeaseSnapshot.of(slot, 103.0)).name == "a task"
    slot.holder = "GET /items"
    hold = LeaseSnapshot.of(slot, 103.0)
    assert (named(hold).name, named(hold).age) == ("GET /items", 3.0)


def test_a_task_is_named_as_its_library_names_it() -> None:
    assert name_of(threading.current_thread()) == threading.current_thread().name
    assert name_of(Named("trio's")) == "trio's"
    assert name_of(None) == "a holder that is gone"

    async def main() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("asyncio's")
        return name_of(task)

    assert asyncio.run(main()) == "asyncio's"


def test_acquired_at_lists_calls_in_their_order() -> None:
    """It is empty where no stack was recorded."""
    slot = Slot(Resource(0), 0, 100.0)
    assert acquired_at(LeaseSnapshot.of(slot, 100.0)) == ""

    def acquires() -> None:
        slot.stack = acquiring_stack()

    acquires()
    assert slot.stack is not None
    assert [call[2] for call in slot.stack[:2]] == [
        "acquires",
        "test_acquired_at_lists_calls_in_their_order",
    ]
    said = acquired_at(LeaseSnapshot.of(slot, 100.0))
    assert said.startswith("\nacquired at:\n  File ")
    assert said.index("in test_acquired_at") < said.index("slot.stack = acquiring_stack()")
    assert all(line.startswith("  ") for line in said.splitlines()[2:])
    assert said == said.rstrip()


def test_a_stack_has_the_twelve_innermost_calls() -> None:
    def call(deeper: int) -> list[Any]:
        return call(deeper - 1) if deeper else acquiring_stack()

    assert [found[2] for found in call(20)] == ["call"] * 12


def test_list_free_survives_a_concurrent_take() -> None:
    """Without the GIL a deque may change while it is copied."""

    class Busy(deque[Any]):
        interrupted = 0

        def __iter__(self) -> Any:
            self.interrupted += 1
            if self.interrupted < 3:
                raise RuntimeError
            return super().__iter__()

    core = StateHarness(limit=2, min_free=2).open()
    core.create_all()
    core.state.inventory.free = Busy(core.state.inventory.free)
    assert len(core.state.inventory.list_free()) == 2

"""The parts that decisions are made with, each alone: queue, generations, outage, upkeep, waiters, holders."""

import asyncio
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import trio

from connectionpools_fastapi._generations import LOST, Generations
from connectionpools_fastapi._outage import Outage
from connectionpools_fastapi._owner import Hold, acquiring_stack, current_task, name_of, owner_of
from connectionpools_fastapi._policy import Policy
from connectionpools_fastapi._queue import WATCH_AFTER, Queue
from connectionpools_fastapi._slot import Slot
from connectionpools_fastapi._upkeep import Upkeep
from connectionpools_fastapi._waiters import AsyncioWaiter, TaskWaiter, ThreadWaiter
from tests.desk import Lease, Named
from tests.support import Caller, Resource

NEVER = float("inf")


# --- the queue ----------------------------------------------------------------------------------


def waiter(deadline: float | None = None, owner: object = None) -> Caller:
    caller = Caller()
    caller.deadline, caller.owner = deadline, owner
    return caller


def queue_of(*callers: Caller) -> Queue[Resource]:
    queue: Queue[Resource] = Queue()
    for caller in callers:
        queue.join(caller)
    return queue


def test_who_came_first_is_the_head_of_the_queue_and_anybody_may_leave_it() -> None:
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


def test_an_owner_is_in_the_queue_until_the_last_of_its_waiters_has_left() -> None:
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


def test_who_has_left_the_queue_keeps_neither_its_task_nor_its_request_alive() -> None:
    caller = waiter(deadline=50.0, owner=object())
    caller.request = object()
    queue_of(caller).leave(caller)
    assert (caller.owner, caller.request) == (None, None)


def test_who_waits_too_long_is_named_in_the_order_of_the_deadlines_and_then_of_arrival() -> None:
    late, early, never, also_early = waiter(3.0), waiter(1.0), waiter(), waiter(1.0)
    queue = queue_of(late, early, never, also_early)
    assert queue.due == 1.0
    assert list(queue.overdue(0.99)) == []
    assert list(queue.overdue(1.0)) == [early, also_early]
    assert queue.due == 3.0
    assert list(queue.overdue(9.0)) == [late]
    assert queue.due == NEVER
    assert len(queue) == 4, "to name them is not to let them go"


def test_who_has_left_the_queue_is_never_overdue_and_is_no_reason_to_look_earlier() -> None:
    gone, also_gone, there = waiter(1.0), waiter(2.0), waiter(3.0)
    queue = queue_of(gone, also_gone, there)
    queue.leave(gone)
    queue.leave(also_gone)
    assert list(queue.overdue(0.0)) == []
    assert queue.due == 3.0
    assert list(queue.overdue(3.0)) == [there]


def test_who_has_left_before_anybody_looked_was_never_noted_with_a_deadline() -> None:
    queue = queue_of(waiter(5.0))
    for number in range(100):
        caller = waiter(float(number))
        queue.join(caller)
        queue.leave(caller)
    assert queue.due == 0.0, "to look too early costs nothing but the look"
    assert list(queue.overdue(1.0)) == []
    assert (queue.due, len(queue._deadlines)) == (5.0, 1)


def test_deadlines_of_those_who_have_left_are_dropped_now_and_then_and_not_at_each_step() -> None:
    queue = queue_of(waiter(1.0), waiter(), waiter())  # the first of them is in no hurry to leave
    kept = []
    for number in range(100):
        caller = waiter(100.0 + number)
        queue.join(caller)
        assert list(queue.overdue(0.0)) == []
        kept.append(len(queue._deadlines))
        queue.leave(caller)
    # At most two for each of the four that wait, and 64.
    assert kept == [*range(2, 73), *range(2, 31)]


def test_the_gaps_of_those_who_have_left_are_closed_now_and_then() -> None:
    first = waiter()
    queue = queue_of(first)
    for _ in range(1000):
        caller = waiter()
        queue.join(caller)
        queue.leave(caller)
        assert len(queue._line) <= 2 * 2 + 64
    last = waiter()
    queue.join(last)
    assert list(queue) == [first, last]


def test_whose_client_need_not_be_watched_any_more_is_forgotten_at_once() -> None:
    queue = queue_of()
    for _ in range(100):
        caller = waiter()
        caller.client = Patient()
        queue.join(caller)
        queue.leave(caller)
    assert len(queue._unwatched) == 0


def test_who_has_left_from_the_middle_is_not_watched() -> None:
    callers = [waiter(), waiter(), waiter()]
    for caller in callers:
        caller.client = Patient()
    queue = queue_of(*callers)
    queue.leave(callers[1])
    assert list(queue.unwatched(WATCH_AFTER / 2)) == []
    assert list(queue.unwatched(WATCH_AFTER)) == [callers[0], callers[2]]
    assert list(queue.unwatched(WATCH_AFTER)) == [], "each is watched once"


class Patient:
    """A client that does not go away."""

    def watch(self, waiter: object, leave: object) -> None: ...

    def unwatch(self, waiter: object) -> None: ...


def test_when_deadlines_are_dropped_the_others_stay_in_order() -> None:
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


def test_older_generations_turn_over_until_the_last_of_them_is_gone() -> None:
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


def test_who_waits_for_a_generation_waits_for_the_older_ones_too_and_is_named_once() -> None:
    generations: Generations[Resource] = Generations()
    generations.enter()
    generations.next()
    generations.enter()
    generations.enter()
    generations.next()
    generations.enter()
    first, both, nobody = Caller(), Caller(), Caller()
    generations.watch(first, 0)
    generations.watch(both, 1)
    generations.watch(nobody, 1)
    generations.forget(nobody)
    assert generations.leave(1) == []
    assert generations.leave(1) == [], "the first one is still there"
    assert not generations.is_gone(0)
    assert not generations.is_gone(1)
    assert generations.leave(0) == [first, both]
    assert generations.is_gone(1)
    assert not generations.is_gone(2)
    assert generations.leave(2) == []


def test_who_waits_for_a_later_generation_goes_on_waiting_as_an_older_one_goes() -> None:
    generations: Generations[Resource] = Generations()
    generations.enter()
    generations.next()
    generations.enter()
    early, late = Caller(), Caller()
    generations.watch(late, 1)
    generations.watch(early, 0)
    assert generations.leave(0) == [early]
    assert generations.leave(1) == [late]


def test_nobody_waits_for_what_is_lost_but_it_is_counted_and_turns_over() -> None:
    generations: Generations[Resource] = Generations()
    assert generations.enter_lost() == LOST
    assert generations.total() == 1
    assert generations.population(LOST) == 1
    assert generations.is_gone(10**9)
    assert generations.are_turning_over()
    generations.leave(LOST)
    assert generations.total() == 0


# --- outage -------------------------------------------------------------------------------------


def test_each_failure_doubles_the_pause_from_a_tenth_of_a_second_to_1_6() -> None:
    outage = Outage(lambda: 1.0)
    pauses = []
    for number in range(7):
        now = 10.0 * (number + 1)
        outage.note(OSError(), started=now - 1, now=now)
        pauses.append(round(outage.retry_at - now, 9))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 1.6, 1.6]
    assert outage.failures == 7


def test_half_of_each_pause_is_left_to_chance() -> None:
    chance = 0.0
    outage = Outage(lambda: chance)
    outage.note(OSError(), started=0.0, now=10.0)
    assert outage.retry_at == 10.0 + 0.05
    outage.end()
    chance = 0.5
    outage.note(OSError(), started=0.0, now=10.0)
    assert outage.retry_at == 10.0 + 0.1 * 0.75


def test_a_failure_that_began_before_the_last_one_only_tells_its_cause() -> None:
    outage = Outage(lambda: 1.0)
    first, second, third = OSError(1), OSError(2), OSError(3)
    outage.note(first, started=1.0, now=5.0)
    outage.note(second, started=5.0, now=6.0)
    assert (outage.failures, outage.retry_at, outage.cause) == (1, 5.1, second)
    outage.note(third, started=5.01, now=7.0)
    assert (outage.failures, outage.retry_at, outage.cause) == (2, 7.2, third)


def test_a_first_failure_counts_whenever_it_began_and_success_forgets_the_others() -> None:
    outage = Outage(lambda: 1.0)
    outage.note(OSError(), started=4.0, now=5.0)
    outage.end()
    assert (outage.failures, outage.cause) == (0, None)
    outage.note(OSError(), started=1.0, now=6.0)
    assert (outage.failures, outage.retry_at) == (1, 6.1)


def test_an_outage_may_last_for_any_number_of_tries() -> None:
    outage = Outage(lambda: 1.0)
    outage.failures = 10_000
    outage.note(OSError(), started=1.0, now=2.0)
    assert outage.retry_at == 3.6


def test_nobody_is_told_to_try_again_in_no_time() -> None:
    outage = Outage(lambda: 1.0)
    outage.note(OSError(), started=1.0, now=2.0)
    assert outage.retry_after(2.0) == pytest.approx(0.1)
    assert outage.retry_after(3.0) == 0.05, "it is under way"


# --- upkeep -------------------------------------------------------------------------------------


Enter = Callable[[float], Slot[Resource]]


def upkeep_of(chance: float = 0.0, **options: Any) -> tuple[Upkeep[Resource], Enter, dict[int, Slot[Resource]]]:
    """Return an upkeep, what enters a new slot into it, and all slots that exist."""
    slots: dict[int, Slot[Resource]] = {}
    kept = []
    upkeep = Upkeep(Policy(**options), slots, lambda: chance)

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
    assert upkeep._looks == []
    assert list(upkeep.due(1e9)) == []
    assert upkeep.why_retire(slot, 1e9) is None
    assert not upkeep.is_idle(slot, 1e9)
    assert not upkeep.is_quiet(slot, 1e9)
    assert not upkeep.retires


def test_a_lifetime_ends_at_its_limit_and_up_to_a_tenth_earlier() -> None:
    for chance, lifetime in ((0.0, 10.0), (0.5, 9.5), (1.0, 9.0)):
        upkeep, enter, _ = upkeep_of(chance, max_lifetime=10.0)
        slot = enter(100.0)
        assert upkeep.retires
        assert slot.retire_at == upkeep.next_deadline() == 100.0 + lifetime
        assert upkeep.why_retire(slot, 100.0 + lifetime - 0.01) is None
        assert upkeep.why_retire(slot, 100.0 + lifetime) == "max_lifetime"


def test_a_resource_retires_after_so_many_uses() -> None:
    upkeep, enter, _ = upkeep_of(max_uses=3)
    slot = enter(100.0)
    assert upkeep.retires
    assert upkeep.next_deadline() == NEVER
    for leases, reason in ((2, None), (3, "max_uses"), (4, "max_uses")):
        slot.leases = leases
        assert upkeep.why_retire(slot, 1e9) == reason


def test_idle_is_what_was_not_used_for_as_long_as_its_pace_says() -> None:
    for chance, limit in ((0.0, 10.0), (1.0, 9.0)):
        upkeep, enter, _ = upkeep_of(chance, max_idle=10.0)
        slot = enter(100.0)
        assert not upkeep.retires
        assert upkeep.next_deadline() == 100.0 + limit
        slot.since = 104.0
        assert not upkeep.is_idle(slot, 104.0 + limit - 0.01)
        assert upkeep.is_idle(slot, 104.0 + limit)


def test_quiet_is_what_was_neither_used_nor_checked_for_as_long_as_its_pace_says() -> None:
    for chance, limit in ((0.0, 10.0), (1.0, 9.0)):
        upkeep, enter, _ = upkeep_of(chance, keepalive=10.0)
        slot = enter(100.0)
        assert upkeep.next_deadline() == 100.0 + limit
        for slot.since, slot.checked_at in ((104.0, 101.0), (101.0, 104.0)):
            assert not upkeep.is_quiet(slot, 104.0 + limit - 0.01)
            assert upkeep.is_quiet(slot, 104.0 + limit)


def test_a_resource_is_looked_at_when_the_first_of_its_times_comes() -> None:
    upkeep, enter, _ = upkeep_of(max_lifetime=10.0, max_idle=4.0, keepalive=3.0)
    slot = enter(100.0)
    looks = []
    for _ in range(6):
        looks.append(upkeep.next_deadline())
        assert list(upkeep.due(looks[-1])) == [slot]
        upkeep.expect(slot, looks[-1])
    # Quiet, then idle, quiet again; its lifetime ends; then what is over for long, each once more.
    assert looks == [103.0, 104.0, 107.0, 110.0, 113.0, 116.0]


def test_what_is_over_already_is_looked_at_again_after_the_same_time_once_more() -> None:
    for option in ("max_idle", "keepalive"):
        upkeep, enter, _ = upkeep_of(1.0, **{option: 10.0})
        slot = enter(100.0)
        upkeep.expect(slot, 104.0)
        assert slot.look_at == 109.0, "it is not over yet"
        upkeep.expect(slot, 109.0)
        assert slot.look_at == 118.0
    upkeep, enter, _ = upkeep_of(max_lifetime=4.0)
    slot = enter(100.0)
    upkeep.expect(slot, 104.0)
    assert slot.look_at == NEVER, "a lifetime ends once"


def test_what_is_expected_twice_for_the_same_time_is_named_once() -> None:
    upkeep, enter, _ = upkeep_of(max_idle=4.0)
    slot = enter(100.0)
    upkeep.expect(slot, 101.0)
    assert list(upkeep.due(104.0)) == [slot]


def test_what_is_due_is_named_in_its_order_and_once() -> None:
    upkeep, enter, _ = upkeep_of(max_idle=4.0)
    late, early, other = enter(102.0), enter(100.0), enter(109.0)
    assert list(upkeep.due(103.99)) == []
    assert list(upkeep.due(106.0)) == [early, late]
    assert list(upkeep.due(106.0)) == []
    assert upkeep.next_deadline() == other.look_at == 113.0


def test_what_is_gone_or_has_another_time_by_now_is_not_due() -> None:
    slots: dict[int, Slot[Resource]] = {}
    upkeep = Upkeep(Policy(max_idle=4.0), slots, lambda: 0.0)
    gone, moved = Slot(Resource(0), 0, 100.0), Slot(Resource(1), 0, 101.0)
    for slot in (gone, moved):
        slots[slot.key] = slot
        upkeep.enter(slot, slot.since)
    del slots[gone.key]
    moved.since = 103.0
    upkeep.expect(moved, 103.0)
    assert upkeep.next_deadline() == 107.0
    assert list(upkeep.due(106.9)) == []
    assert list(upkeep.due(107.0)) == [moved]
    assert upkeep.next_deadline() == NEVER


def test_looks_at_what_is_gone_are_dropped_now_and_then_and_not_at_each_step() -> None:
    upkeep, enter, slots = upkeep_of(max_idle=4.0)
    stay = [enter(900.0) for _ in range(3)]
    kept = []
    for number in range(100):
        gone = enter(1000.0 + number)
        kept.append(len(upkeep._looks))
        del slots[gone.key]
    # At most two for each of the four that exist, and 64; the three that stay are kept.
    assert kept == [*range(4, 73), *range(4, 35)]
    assert {id(slot) for slot in upkeep.due(5000.0)} == {id(slot) for slot in stay}


def test_when_looks_are_dropped_the_others_stay_in_order() -> None:
    # As they stand in the heap: without the two earliest ones, what is left is no heap any more.
    upkeep, enter, slots = upkeep_of(max_idle=4.0)
    first, late, second, *others = [enter(since) for since in (1.0, 100.0, 2.0, 200.0, 201.0, 3.0, 4.0)]
    del slots[first.key], slots[second.key]
    while len(upkeep._looks) >= 7:
        gone = enter(1000.0)
        del slots[gone.key]
    assert list(upkeep.due(500.0)) == [others[2], others[3], late, others[0], others[1]]


# --- waiters ------------------------------------------------------------------------------------


async def parked(waiter: TaskWaiter[Resource]) -> None:
    await waiter.parked


def test_a_task_is_woken_at_once_within_its_loop_and_through_it_from_elsewhere() -> None:
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


def test_a_task_waits_until_it_is_woken_and_a_cancelled_one_may_be_woken_too() -> None:
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


def test_a_thread_waits_until_it_is_woken_or_its_time_is_over() -> None:
    waiter: ThreadWaiter[Resource] = ThreadWaiter()
    assert (waiter.slot, waiter.error) == (None, None)
    assert not waiter.wait(0.0)
    waiter.wake()
    assert waiter.wait(0.0)
    waiter.wake()
    assert waiter.wait(None)
    waiter.wake()
    assert waiter.wait(1e12), "longer than any lock can wait"


def test_a_thread_without_a_timeout_waits_for_ever_and_with_one_no_longer() -> None:
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


def test_a_new_waiter_has_no_deadline_and_nothing_was_said_to_it() -> None:
    caller = Caller()
    assert (caller.asked_at, caller.deadline, caller.waits) == (0.0, None, False)
    assert (caller.owner, caller.request, caller.slot, caller.error) == (None, None, None, None)


# --- who holds what -----------------------------------------------------------------------------


def test_the_running_task_is_found_and_outside_of_tasks_there_is_none() -> None:
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


def test_the_running_task_is_found_where_nobody_imported_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trio")
    assert current_task() is None


def test_the_owner_of_a_slot_is_that_of_its_lease_while_the_lease_lives() -> None:
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


def test_a_holder_is_named_as_it_was_told_or_after_its_task_or_thread() -> None:
    slot = Slot(Resource(0), 0, 100.0)
    assert Hold.of(slot, 103.0).named().name == "unnamed"
    by_hand = Named("a thread")
    slot.lease = weakref.ref(by_hand)
    hold = Hold.of(slot, 103.0)
    assert (hold.named().name, hold.named().age, str(hold)) == ("a thread", 3.0, "a thread has held a resource for 3 s")
    lease = Lease(Named("a task"))
    slot.lease = weakref.ref(lease)
    assert Hold.of(slot, 103.0).named().name == "a task"
    slot.holder = "GET /items"
    hold = Hold.of(slot, 103.0)
    assert (hold.named().name, hold.named().age) == ("GET /items", 3.0)


def test_a_task_is_named_as_its_library_names_it() -> None:
    assert name_of(threading.current_thread()) == threading.current_thread().name
    assert name_of(Named("trio's")) == "trio's"
    assert name_of(None) == "unnamed"

    async def main() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("asyncio's")
        return name_of(task)

    assert asyncio.run(main()) == "asyncio's"


def test_a_holder_says_where_it_acquired_in_the_order_of_the_calls_as_far_as_known() -> None:
    slot = Slot(Resource(0), 0, 100.0)
    assert Hold.of(slot, 100.0).acquired_at() == ""

    def acquires() -> None:
        slot.stack = acquiring_stack()

    acquires()
    assert slot.stack is not None
    assert [call[2] for call in slot.stack[:2]] == [
        "acquires",
        "test_" + "a_holder_says_where_it_acquired_in_the_order_of_the_calls_as_far_as_known",
    ]
    said = Hold.of(slot, 100.0).acquired_at()
    assert said.startswith("\nacquired at:\n  File ")
    assert said.index("in test_a_holder") < said.index("slot.stack = acquiring_stack()")
    assert all(line.startswith("  ") for line in said.splitlines()[2:])
    assert said == said.rstrip()


def test_a_stack_has_the_twelve_innermost_calls() -> None:
    def call(deeper: int) -> list[Any]:
        return call(deeper - 1) if deeper else acquiring_stack()

    assert [found[2] for found in call(20)] == ["call"] * 12

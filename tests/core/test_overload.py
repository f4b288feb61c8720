"""Overload: the pool learns its callers' patience, and refuses those that would leave before they are served.

Each simulation is a load in virtual time on the state of a pool, with a fixed seed.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from benchmarks.simulated import Client, Simulation, poisson
from connectionpools_fastapi import Overloaded
from connectionpools_fastapi._core.effects import Effect
from connectionpools_fastapi._core.patience import Patience
from connectionpools_fastapi._core.slot import NEVER
from tests.state_harness import StateHarness, harness
from tests.support import Caller

ENOUGH = 0.95  # of the capacity, for clients that stayed


def lasting(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def random_holds(mean: float) -> Callable[[], float]:
    chance = random.Random(3)  # noqa: S311 - no secret
    return lambda: chance.expovariate(1 / mean)


def waiting_for(patience: float) -> Callable[[float, random.Random], Client]:
    return lambda at, _: Client(at, patience)


def mostly_patient(share: float, patience: float) -> Callable[[float, random.Random], Client]:
    """Return clients of which this share has so little patience."""

    def client(at: float, chance: random.Random) -> Client:
        return Client(at, patience, "hasty") if chance.random() < share else Client(at, kind="patient")

    return client


# --- goodput ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patience", "hold", "load"),
    [(1.0, 0.02, 5.0), (0.4, 0.02, 5.0), (2.0, 0.02, 3.0), (1.0, 0.01, 2.0), (1.0, 0.02, 1.3)],
)
def test_goodput_stays_under_overload(patience: float, hold: float, load: float) -> None:
    clients = poisson(load * 10 / hold, 5, waiting_for(patience))
    assert Simulation(10, lasting(hold)).run(clients, 5).goodput >= ENOUGH


def test_goodput_stays_if_patience_differs() -> None:
    clients = poisson(1500, 5, lambda at, chance: Client(at, chance.lognormvariate(-0.3, 0.6)))
    assert Simulation(10, lasting(0.02)).run(clients, 5).goodput >= ENOUGH


def test_goodput_stays_if_patience_falls() -> None:
    clients = poisson(1500, 5, lambda at, _: Client(at, 2 if at < 2.5 else 0.5))
    assert Simulation(10, lasting(0.02)).run(clients, 5).goodput >= ENOUGH


def test_goodput_stays_if_holds_are_long() -> None:
    assert Simulation(10, lasting(0.4)).run(poisson(75, 40, waiting_for(1.0)), 40).goodput >= ENOUGH


def test_goodput_stays_in_small_pool() -> None:
    assert Simulation(2, lasting(0.1)).run(poisson(60, 40, waiting_for(0.5)), 40).goodput >= ENOUGH


def test_goodput_stays_for_long() -> None:
    """40 s at 3 x the capacity, with holds of 0.1 s: as many rounds as 8 s of shorter ones."""
    assert Simulation(10, lasting(0.1)).run(poisson(300, 40, waiting_for(1.0)), 40).goodput >= ENOUGH


def test_queue_lets_all_wait_and_collapses() -> None:
    """What `overload="queue"` gives, and the reason for the rule: callers are served that are about to leave."""
    outcomes = Simulation(10, lasting(0.02), overload="queue").run(poisson(2500, 3, waiting_for(1.0)), 3)
    assert outcomes.goodput < 0.5
    assert outcomes.count("refused") == 0


# --- calm --------------------------------------------------------------------------------------


def test_one_impatient_waiter_refuses_no_burst() -> None:
    fill = [Client(0.0) for _ in range(10)]
    bursts = [Client(5.0 + 10 * turn + number * 1e-6, kind="burst") for turn in range(5) for number in range(200)]
    outcomes = Simulation(10, lasting(0.02)).run([*fill, Client(0.001, 0.001), *bursts], 60)
    assert outcomes.count("left") == 1
    assert outcomes.count("served", "burst") == 1000
    waits = [wait for kind, wait in outcomes.waits if kind == "burst"]
    assert max(waits) < 0.41, "the burst was not served at the full rate"


def test_few_impatient_clients_refuse_none() -> None:
    """At a load of 0.9, with 2 % of clients that leave after 30 ms."""
    outcomes = Simulation(10, random_holds(0.02)).run(poisson(450, 20, mostly_patient(0.02, 0.03)), 20)
    assert outcomes.count("refused", "patient") == 0
    assert outcomes.count("served", "patient") > 8000


def test_two_leavers_of_a_small_pool_refuse_none() -> None:
    patient = poisson(0.8, 50, lambda at, _: Client(at, kind="patient"), seed=2)
    clients = [*patient, Client(1.0, 0.2), Client(1.3, 0.2)]
    outcomes = Simulation(1, lasting(1.0), timeout=30).run(clients, 50)
    assert outcomes.count("refused", "patient") == 0


def test_hostile_clients_cost_few_patient_ones() -> None:
    """A third of all clients hang up after a millisecond; the pool keeps `limit` waiters all the same."""
    outcomes = Simulation(10, random_holds(0.02)).run(poisson(643, 20, mostly_patient(0.3, 0.001)), 20)
    patient = sum(number for (kind, _), number in outcomes.ends.items() if kind == "patient")
    assert outcomes.count("refused", "patient") < 0.05 * patient


def test_two_kinds_of_clients_keep_the_pool_busy() -> None:
    """They share one estimate, so that the patient ones are refused too: the docs say so."""
    kinds = [(0.3, "hasty"), (3.0, "patient")]
    clients = poisson(1500, 5, lambda at, chance: Client(at, *chance.choice(kinds)))
    assert Simulation(10, lasting(0.02)).run(clients, 5).goodput >= ENOUGH


# --- what teaches, and what does not --------------------------------------------------------------


def crowded(waiters: int, **options: Any) -> tuple[StateHarness, list[Caller]]:
    """Return a pool of one whose waiters are handed its resource every second, and that many that wait now."""
    core = harness(**{"limit": 1, "timeout": None, **options})
    slot = core.lease()
    for _ in range(25):  # more than a pool of one remembers
        caller = core.acquire()
        core.advance(1)
        core.release(slot)
        assert caller.slot is slot
    return core, [core.acquire() for _ in range(waiters)]


def newcomers_leave(core: StateHarness, age: float, number: int) -> None:
    for _ in range(number):
        caller = core.acquire()
        core.advance(age)
        core.do(core.state.cancel, caller)


def test_newcomer_beyond_patience_is_refused() -> None:
    core, _ = crowded(2)
    newcomers_leave(core, 0.3, 6)
    with pytest.raises(Overloaded, match=r"would wait for about 3 s, and callers leave after about 0\.31 s") as caught:
        core.acquire()
    assert caught.value.retry_after == pytest.approx(3.0, rel=0.05)
    assert core.refusals() == {"overloaded": 1}


def test_newcomer_beyond_its_own_timeout_is_refused() -> None:
    core, _ = crowded(2)
    with pytest.raises(Overloaded, match=r"about 3 s, and its timeout is 2\.9 s"):
        core.acquire(2.9)
    core.acquire(3.1)
    assert len(core.waiting()) == 3


def test_newcomers_of_one_moment_fill_the_room_exactly() -> None:
    """Also those that are not judged one by one."""
    core, _ = crowded(0)
    for number in range(8):
        caller = Caller()
        if number < 5:
            core.do(core.state.acquire, caller, 5.0)
        else:
            with pytest.raises(Overloaded):
                core.do(core.state.acquire, caller, 5.0)
    assert len(core.waiting()) == 5


def test_nothing_is_known_before_a_round_has_ended() -> None:
    core = harness(limit=2, timeout=None)
    core.leases(2)
    for _ in range(10):
        core.acquire(0.5)
    assert core.state.overload.expected_wait(core.now) is None


def test_nothing_is_known_after_a_stall() -> None:
    core, _ = crowded(2)
    core.advance(2.9)
    assert core.state.overload.expected_wait(core.now) is not None
    core.advance(0.2)
    assert core.state.overload.expected_wait(core.now) is None
    core.acquire(0.5)


def test_nothing_is_known_while_create_is_under_way() -> None:
    core, _ = crowded(2)
    core.do(core.state.resize, 2)
    assert core.count("create") == 1
    assert core.state.overload.expected_wait(core.now) is None


def test_idle_time_is_not_slow() -> None:
    core, _ = crowded(0)
    core.advance(100)
    core.acquire()
    assert core.state.overload.expected_wait(core.now) == pytest.approx(2.0)


def test_expected_wait_is_right() -> None:
    """Within 30 % for each client that waits for five holds or more, with constant holds and no leavers."""
    for seed in range(1, 6):
        clients = poisson(600, 3, lambda at, _: Client(at), seed)
        outcomes = Simulation(10, lasting(0.02), timeout=None).run(clients, 5)
        judged = [(expected, waited) for expected, waited in outcomes.expected if waited >= 0.1]
        assert len(judged) > 500
        assert all(abs(expected - waited) <= 0.3 * waited for expected, waited in judged), f"seed {seed}"


def test_own_timeout_neither_teaches_nor_is_judged() -> None:
    core, _ = crowded(2)
    for _ in range(20):
        caller = Caller()
        caller.has_own_timeout = True
        core.do(core.state.acquire, caller, 5.0)
        core.advance(0.1)
        core.do(core.state.cancel, caller)
    assert core.state.overload.patience.learned == NEVER
    core, _ = crowded(2)
    newcomers_leave(core, 0.3, 6)
    caller = Caller()
    caller.has_own_timeout = True
    core.do(core.state.acquire, caller, None)
    assert caller in core.waiting()


def test_timeouts_teach_nothing() -> None:
    core, _ = crowded(0)
    for _ in range(20):
        core.acquire(0.5)
        core.advance(0.5)
    assert core.state.counters.timeouts == 20
    assert core.state.overload.patience.learned == NEVER


def test_close_and_suspension_teach_nothing() -> None:
    core, waiters = crowded(20)
    core.ask(core.state.suspend)
    for waiter in waiters[:10]:
        core.advance(0.1)
        core.do(core.state.cancel, waiter)
    core.do(core.state.resume)
    assert core.state.overload.patience.learned == NEVER
    core.close()
    assert core.state.overload.patience.learned == NEVER


def test_open_forgets() -> None:
    core, _ = crowded(2)
    newcomers_leave(core, 0.3, 6)
    slot = next(iter(core.state.inventory.taken.values()))
    core.close()
    core.end_close()
    core.do(core.state.open)
    core.release(slot)
    assert core.state.overload.patience.learned == NEVER
    assert core.state.overload.expected_wait(core.now) is None


def test_mass_cancellation_teaches_once() -> None:
    core, waiters = crowded(500)
    core.is_trusted = True
    for number, waiter in enumerate(waiters):
        core.now += 1e-5
        core.do(
            core.state.client_gone if number % 2 else core.state.cancel, waiter, *([OSError()] if number % 2 else [])
        )
    assert core.state.counters.withdrawals == 500
    assert not core.state.overload.patience.is_tried
    for _ in range(100):
        core.acquire()


def test_leaver_during_its_lease_teaches_its_total_age() -> None:
    core = harness(limit=1, timeout=None)
    (slot,) = core.have_free(1)
    assert core.acquire().slot is slot
    core.do(core.state.overload.leave_during_lease, slot)  # it has not waited
    assert core.state.overload.patience.learned == NEVER
    newcomers_leave(core, 5.0, 1)  # a pool that loses no caller does not note when they asked
    core.acquire()
    core.advance(2)
    core.release(slot)
    core.advance(3)
    core.do(core.state.overload.leave_during_lease, slot)
    assert core.state.overload.patience.lost == pytest.approx(0.02 + 0.98 * 0.98 * 0.02, rel=0.1)
    assert core.state.overload.patience.learned == pytest.approx(5 * 1.03**5 - 0.3 * 5 * (1.03**5 - 1))


def test_client_gone_during_its_lease_teaches() -> None:
    core, (first,) = crowded(1)
    core.advance(0.5)
    second = core.acquire()
    (slot,) = core.state.inventory.taken.values()
    core.release(slot)
    core.advance(1)
    core.do(core.state.client_gone, first, OSError())  # no caller was lost before: it was not noted when this one asked
    assert core.state.overload.patience.learned == NEVER
    core.release(slot)
    core.advance(1)
    core.do(core.state.client_gone, first, OSError())  # its lease is over
    assert core.state.overload.patience.learned == NEVER
    core.do(core.state.client_gone, second, OSError())
    assert core.state.overload.patience.learned == 2
    assert core.state.counters.withdrawals == 0
    core.release(slot)
    core.do(core.state.client_gone, second, OSError())
    assert core.state.overload.patience.learned == 2


def test_cut_off_leases_are_no_completions() -> None:
    """Their resources come back early: that a queue moves fast thanks to them serves no caller."""
    core, _ = crowded(40)
    for _ in range(30):
        (slot,) = core.state.inventory.taken.values()
        core.advance(0.1)
        core.do(core.state.overload.cut_off, slot)
        core.release(slot)
    expected = core.state.overload.expected_wait(core.now)
    assert expected == pytest.approx((20 + 3) / 20 * 11, rel=0.01)
    assert len(core.waiting()) == 10
    assert core.state.overload.patience.lost > 0


def test_larger_limit_needs_more_to_be_known() -> None:
    core, _ = crowded(2)
    core.do(core.state.resize, 30)
    core.create_all()
    assert core.state.overload.expected_wait(core.now) is None
    assert core.state.overload.throughput.handed.maxlen == 121


def test_patience_follows_leavers_and_grows_without() -> None:
    patience = Patience()
    patience.leave(10.0, 0.0)
    patience.has_newcomer = True
    patience.leave(5.0, 0.0)
    assert patience.learned == pytest.approx(8.5)
    patience.has_newcomer = True
    patience.leave(18.5, 0.0)
    assert patience.learned == pytest.approx(8.7)
    assert patience.longest_wait(1.0, 0.0) == pytest.approx(0.6 * 8.7)
    assert patience.longest_wait(5.0, 0.0) == pytest.approx(0.85 * 8.7 - 5)
    assert patience.longest_wait(1.0, 1e9) > 1e6
    assert patience.longest_wait(1.0, 10.0) == pytest.approx(0.6 * 8.7 * 1.03**10)


def test_spent_waiters_give_way_down_to_limit() -> None:
    core, waiters = crowded(3)
    newcomers_leave(core, 0.3, 6)
    slot = next(iter(core.state.inventory.taken.values()))
    core.release(slot)
    assert [type(waiter.error) for waiter in waiters] == [Overloaded, Overloaded, type(None)]
    assert waiters[2].slot is slot
    assert "this caller has waited for 1.8 s" in str(waiters[0].error)
    refusals = [waiter.error for waiter in waiters if isinstance(waiter.error, Overloaded)]
    assert [error.retry_after for error in refusals] == [
        pytest.approx(4.0),
        pytest.approx(3.0),
    ]


def test_overload_begins_and_ends_once() -> None:
    core, _ = crowded(2)
    for _ in range(3):
        with pytest.raises(Overloaded):
            core.acquire(0.5)
        core.advance(0.4)
    (begin,) = core.asked[Effect.OVERLOADED]
    assert (begin.refused, begin.waiting, len(begin.leases)) == (1, 2, 1)
    assert begin.expected_wait == pytest.approx(3.0, rel=0.05)
    assert begin.patience == NEVER
    assert core.state.overload.is_on
    assert not core.asked[Effect.RELIEVED]
    core.advance(core.state.due - core.now)
    (end,) = core.asked[Effect.RELIEVED]
    assert (end.refused, end.left, end.served, end.lasted) == (3, 0, 0, pytest.approx(0.8))
    assert not core.state.overload.is_on


def test_overload_that_begins_at_a_hand_over_ends_in_time() -> None:
    core, _ = crowded(3)
    newcomers_leave(core, 0.3, 6)
    core.release(next(iter(core.state.inventory.taken.values())))
    assert len(core.asked[Effect.OVERLOADED]) == 1
    assert core.state.due <= core.now + 1


def test_queue_refuses_and_learns_nothing() -> None:
    core, _ = crowded(2, overload="queue")
    newcomers_leave(core, 0.1, 20)
    core.acquire(0.5)
    assert core.refusals() == {}
    (slot,) = core.state.inventory.taken.values()
    core.do(core.state.overload.cut_off, slot)
    patience = core.state.overload.patience
    assert (patience.learned, patience.lost, core.state.overload.throughput.cut_off) == (NEVER, 0.0, 0)


# --- whatever comes, in any order -------------------------------------------------------------------


class OverloadMachine(RuleBasedStateMachine):
    """Callers that come, wait, leave, hold and give back, in any order."""

    @initialize(limit=st.integers(1, 3), max_uses=st.sampled_from([None, 3]))
    def describe(self, limit: int, max_uses: int | None) -> None:
        self.core = harness(limit=limit, max_uses=max_uses, timeout=None)
        self.line: list[Caller] = []
        self.refused = 0
        self.retry_after = 1.0  # of the last one

    def see(self) -> None:
        """Take up what the callers in line got."""
        answered = [caller for caller in self.line if not caller.waits]
        served = [caller for caller in answered if caller.slot is not None]
        assert self.line[: len(answered)] == answered, "a caller was overtaken"
        assert all(isinstance(caller.error, Overloaded) for caller in answered if caller.slot is None)
        if len(answered) > len(served):
            assert len(self.line) - len(answered) + len(served) >= self.core.state.limit
            assert not self.core.free()
        self.refused += len(answered) - len(served)
        del self.line[: len(answered)]

    @rule(own=st.booleans(), timeout=st.sampled_from([None, None, 1.0]))
    def come(self, own: bool, timeout: float | None) -> None:  # noqa: FBT001 - hypothesis passes names
        caller, core = Caller(), self.core
        caller.has_own_timeout = own or timeout is not None
        may_be_refused = len(self.line) >= core.state.limit and not core.free()
        try:
            slot = core.do(core.state.acquire, caller, timeout)
        except Overloaded as error:
            assert may_be_refused
            assert timeout is not None or not caller.has_own_timeout
            self.retry_after = error.retry_after or 0.0
            self.refused += 1
        else:
            if slot is None:
                self.line.append(caller)
        self.see()
        core.create_all()
        self.see()

    @precondition(lambda self: self.line)
    @rule(number=st.integers(0, 99))
    def leave(self, number: int) -> None:
        caller = self.line.pop(number % len(self.line))
        self.core.do(self.core.state.cancel, caller)
        self.see()

    @precondition(lambda self: self.core.state.inventory.taken)
    @rule(number=st.integers(0, 99), left=st.booleans())
    def give_back(self, number: int, left: bool) -> None:  # noqa: FBT001 - as above
        taken = list(self.core.state.inventory.taken.values())
        slot = taken[number % len(taken)]
        if left:
            self.core.do(self.core.state.overload.leave_during_lease, slot)
        self.core.release(slot)
        self.see()
        self.core.create_all()
        self.see()

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3, 2.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.core.now += seconds
        overdue = [caller for caller in self.line if caller.deadline is not None and caller.deadline <= self.core.now]
        self.line = [caller for caller in self.line if caller not in overdue]
        self.core.advance(0)
        assert all(caller.error is not None for caller in overdue)

    @invariant()
    def all_is_counted(self) -> None:
        assert self.core.waiting() == self.line
        assert self.core.state.counters.refusals["overloaded"] == self.refused
        overload = self.core.state.overload
        assert 0 <= overload.patience.lost < 1
        assert self.retry_after > 0
        assert self.core.state.next_deadline() <= overload.due_at


OverloadMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow], deadline=None
)
test_overload_keeps_its_promises_in_any_order = OverloadMachine.TestCase

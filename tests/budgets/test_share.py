"""Share and the script: never more tokens granted than the total, whatever crashes, is late, is lost or stops."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from connectionpools_fastapi.budgets._books import SCRIPT
from connectionpools_fastapi.budgets._share import Request, Share

TTL = 9.0
TOTAL = 5
PREFIX = "test:share"
CLOCK = f"{PREFIX}:clock"
VIRTUAL = SCRIPT.replace('redis.call("TIME")', f'redis.call("LRANGE", "{CLOCK}", 0, 1)')


class Books:
    """The script on a real Redis, with a clock that the test moves."""

    def __init__(self, redis: Any, total: int = TOTAL) -> None:
        assert VIRTUAL != SCRIPT
        self.redis = redis
        self.keys = [f"{PREFIX}:{part}" for part in ("books", "ends", "held", "hungry")]
        self.total = total
        self.script = redis.register_script(VIRTUAL)
        self.empty()
        self.set_clock(0.0)

    def empty(self) -> None:
        self.redis.delete(*self.keys)

    def set_clock(self, now: float) -> None:
        self.now = now
        with self.redis.pipeline() as pipe:
            pipe.delete(CLOCK)
            pipe.rpush(CLOCK, 1_000_000_000 + math.floor(now), int(now % 1 * 1_000_000))
            pipe.execute()

    def run(self, member: str, request: Request, *, is_leaving: bool = False, total: int | None = None) -> list[Any]:
        want = 0 if is_leaving else request.want
        arguments = [member, int(is_leaving), request.turn, want, request.has, request.claim]
        answer = self.script(self.keys, [*arguments, total or self.total, 1, int(TTL * 1000)])
        return [part.decode() if isinstance(part, bytes) else part for part in answer]

    def held(self) -> dict[str, int]:
        return {name.decode(): int(held) for name, held in self.redis.zrange(self.keys[2], 0, -1, withscores=True)}

    def known(self) -> set[str]:
        return {name.decode() for name in self.redis.zrange(self.keys[1], 0, -1)}

    def number(self, field: str) -> int | None:
        found = self.redis.hget(self.keys[0], field)
        return None if found is None else int(found)

    def is_granting(self) -> bool:
        """Whether the time in which members say what they hold is over."""
        grace = self.number("grace")
        return grace is not None and 1000 * (1_000_000_000 + self.now) >= grace


@pytest.fixture
def books(redis_url: str) -> Iterator[Books]:
    with Redis.from_url(redis_url) as redis:
        yield Books(redis)


class Neighbour:
    """A member; its pool takes each token that it may have."""

    def __init__(self, books: Books, name: str) -> None:
        self.books = books
        self.name = name
        self.share = Share(TTL)
        self.asked = 0
        self.level = 0
        self.sync()

    def needs(self, tokens: int) -> "Neighbour":
        while self.share.used > tokens:
            self.share.give_back()
        self.share.waiting = tokens - self.share.used
        return self

    def take_all(self) -> None:
        while self.share.waiting and self.share.take(self.books.now):
            self.share.waiting -= 1

    def sync(self) -> int:
        self.hear(request := self.share.ask(self.books.now), self.books.run(self.name, request))
        return self.share.used

    def hear(self, request: Request, answer: list[Any]) -> None:
        kind, granted, self.asked, self.level, *_ = answer
        assert kind == "granted"
        for _ in range(self.share.grant(request, granted)):  # before anything else
            self.share.give_back()
        self.take_all()

    def hear_nothing(self) -> Request:
        request = self.share.ask(self.books.now)
        self.share.fail(request)
        self.take_all()
        return request


def grown(books: Books, *needs: int) -> list[Neighbour]:
    """Return members that have got what they need."""
    members = [Neighbour(books, str(number)) for number in range(len(needs))]
    for _ in range(4):
        books.set_clock(books.now + TTL / 4)
        for member in members:
            member.sync()
    for member, tokens in zip(members, needs, strict=True):
        member.needs(tokens).sync()
    return members


def used(*members: Neighbour) -> list[int]:
    return [member.share.used for member in members]


def test_member_gets_what_is_free_and_no_more(books: Books) -> None:
    one, two = grown(books, 3, 4)
    assert used(one, two) == [3, 2]
    one.needs(1).sync()
    two.sync()
    assert used(one, two) == [1, 4]


def test_books_that_know_nothing_grant_after_one_ttl(books: Books) -> None:
    member = Neighbour(books, "one").needs(2)
    for part in (1, 2, 3):
        books.set_clock(part * TTL / 4)
        assert member.sync() == 0
    books.set_clock(TTL)
    assert member.sync() == 2


def test_members_keep_what_they_hold_as_books_are_lost(books: Books) -> None:
    one, two = grown(books, 3, 1)
    books.empty()
    newcomer = Neighbour(books, "new").needs(5)
    assert [member.needs(5).sync() for member in (newcomer, two, one)] == [0, 1, 3]
    for _ in range(4):
        books.set_clock(books.now + TTL / 4)
        one.sync()
        two.sync()
    newcomer.sync()
    assert sum(used(one, two, newcomer)) == 5


def test_members_keep_what_they_hold_after_an_outage(books: Books) -> None:
    one, two = grown(books, 4, 1)
    for _ in range(10):
        books.set_clock(books.now + TTL / 2)
        assert [member.hear_nothing().claim for member in (one, two)] == [4, 1]
    assert [member.needs(5).sync() for member in (two, one)] == [1, 4]


def test_crashed_members_tokens_are_free_after_one_ttl(books: Books) -> None:
    crashed, other = grown(books, 4, 5)
    for _ in range(3):
        books.set_clock(books.now + TTL / 4)
        assert other.sync() == 1
    books.set_clock(books.now + TTL / 4)
    assert other.sync() == 5
    assert crashed.name not in books.held()


def test_stopped_member_creates_nothing_until_it_has_asked(books: Books) -> None:
    stopped, other = grown(books, 4, 5)
    for _ in range(5):
        books.set_clock(books.now + TTL / 4)
        other.sync()
    stopped.share.give_back()
    stopped.needs(5).take_all()
    assert stopped.share.used == 3
    assert stopped.sync() == 0  # it has given up what went to the other


def test_answer_that_is_lost_costs_no_token(books: Books) -> None:
    (member,) = grown(books, 1)
    request = member.needs(5).share.ask(books.now)
    books.run(member.name, request)
    member.share.fail(request)
    assert not member.share.take(books.now)
    assert member.sync() == 5


def test_call_that_is_late_changes_nothing(books: Books) -> None:
    (member,) = grown(books, 2)
    late = member.share.ask(books.now)
    assert member.needs(5).sync() == 5
    assert books.run(member.name, late) == ["late"]
    assert books.held() == {"0": 5}


def test_busy_member_is_asked_down_to_the_level(books: Books) -> None:
    rich, poor = grown(books, 5, 5)
    rich.needs(5).sync()
    assert (rich.asked, rich.level) == (4, 3)
    rich.needs(3).sync()
    assert poor.sync() == 2
    assert rich.needs(5).sync() == 3
    assert (rich.asked, poor.asked) == (0, 0)


def test_no_token_is_asked_for_that_no_member_lacks(books: Books) -> None:
    rich, poor = grown(books, 4, 2)
    rich.sync()
    assert rich.asked == 1
    books.set_clock(books.now + 1.5)  # a member that has stopped is believed for a second
    rich.sync()
    assert rich.asked == 0
    poor.needs(1).sync()
    rich.sync()
    assert rich.asked == 0


def test_tokens_go_to_the_member_that_has_least(books: Books) -> None:
    one, two, three = grown(books, 5, 0, 0)
    for member in (two, three):
        member.needs(5).sync()
    one.needs(1).sync()
    assert [member.sync() for member in (two, three, one)] == [2, 2, 1]


def test_clock_that_is_set_back_does_not_keep_dead_members(books: Books) -> None:
    _, other = grown(books, 4, 5)
    books.set_clock(books.now - 1000)
    for _ in range(5):
        other.sync()
        books.set_clock(books.now + TTL / 4)
    assert other.sync() == 5


def test_members_of_other_totals_are_named(books: Books) -> None:
    (member,) = grown(books, 1)
    answer = books.run("new", Share(TTL).ask(0.0), total=7)
    assert answer == ["disagrees", str(TOTAL), str(int(TTL * 1000)), "0"]
    books.run(member.name, member.share.ask(books.now), is_leaving=True)
    assert books.run("new", Share(TTL).ask(0.0), total=7)[0] == "granted"


class Interleavings(RuleBasedStateMachine):
    """Members take, give back, crash, stop, are cut off; Redis is away, is emptied, gets calls late.

    The exception: a member that was not heard of for a time-to-live, since it was stopped or cut off, holds what
    others may hold by now, until it has heard from Redis again; and if Redis was emptied meanwhile, which then believes
    it, until the others have heard from Redis as well.
    """

    redis: Redis

    @initialize()
    def begin(self) -> None:
        self.books = Books(self.redis)
        self.excepted: set[str] = set()
        self.late: list[tuple[str, Request]] = []
        self.joined = 3
        self.members = [Neighbour(self.books, f"m{number}").needs(number) for number in (1, 2, 3)]
        self.go_on(5, apart=3, is_cut_off=False)

    def pick(self, number: int) -> Neighbour:
        return self.members[number % len(self.members)]

    @precondition(lambda self: len(self.members) < 4)
    @rule()
    def join(self) -> None:
        self.joined += 1
        self.members.append(Neighbour(self.books, f"m{self.joined}").needs(self.joined % 4))

    @rule(number=st.integers(0, 3), tokens=st.sampled_from([0, 1, 2, 4, 6]))
    def need(self, number: int, tokens: int) -> None:
        self.pick(number).needs(tokens).take_all()

    @rule(number=st.integers(0, 3))
    def sync(self, number: int) -> None:
        member = self.pick(number)
        member.sync()
        if self.books.is_granting():  # else it was believed what it said
            self.excepted.discard(member.name)

    @rule(times=st.integers(1, 8), apart=st.integers(0, 7), is_cut_off=st.booleans())
    def go_on(self, times: int, apart: int, is_cut_off: bool) -> None:  # noqa: FBT001 - drawn
        """Let time pass while the members sync, but perhaps for one."""
        for _ in range(times):
            self.books.set_clock(self.books.now + TTL / 5)
            for number, member in enumerate(self.members):
                if number != apart:
                    self.sync(number)
                elif is_cut_off:
                    member.hear_nothing()
            self.members_hold_no_more_than_the_total()

    @rule(number=st.integers(0, 3))
    def lose_answer(self, number: int) -> None:
        member = self.pick(number)
        request = member.hear_nothing()
        self.books.run(member.name, request)

    @rule(number=st.integers(0, 3))
    def delay_call(self, number: int) -> None:
        member = self.pick(number)
        self.late.append((member.name, member.hear_nothing()))

    @precondition(lambda self: self.late)
    @rule(number=st.integers(0, 9))
    def deliver_late(self, number: int) -> None:
        self.books.run(*self.late.pop(number % len(self.late)))

    @precondition(lambda self: len(self.members) > 2)
    @rule(number=st.integers(0, 3))
    def crash(self, number: int) -> None:
        self.members.remove(self.pick(number))

    @rule(part=st.sampled_from([0.05, 0.2, 0.5, 1.1]))
    def stop_all(self, part: float) -> None:
        self.books.set_clock(self.books.now + part * TTL)

    @rule(times=st.integers(1, 8))
    def be_away(self, times: int) -> None:
        for _ in range(times):
            self.books.set_clock(self.books.now + TTL / 5)
            for member in self.members:
                member.hear_nothing()

    @rule()
    def empty(self) -> None:
        self.books.empty()

    @invariant()
    def books_add_up(self) -> None:
        held = self.books.held()
        assert sum(held.values()) <= TOTAL
        assert sum(held.values()) == (self.books.number("used") or 0)
        assert held.keys() == self.books.known()

    @invariant()
    def members_hold_no_more_than_the_total(self) -> None:
        known, is_granting = self.books.known(), self.books.is_granting()
        for member in self.members:
            if not member.share.is_reliable(self.books.now) or (is_granting and member.name not in known):
                self.excepted.add(member.name)
        counted = [member.share for member in self.members if member.name not in self.excepted]
        assert sum(share.granted for share in counted) <= TOTAL
        assert all(share.used <= share.granted for share in counted)


def test_total_holds_under_any_interleaving(redis_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        Interleavings.redis = redis
        run_state_machine_as_test(
            Interleavings,
            settings=settings(
                max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
            ),
        )

"""Contestants take turns, round after round; what counts is the median of the ratios within a round."""

import gc
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

OURS = "connectionpools_fastapi"
PURE = "connectionpools_fastapi, pure Python"  # takes part if OURS is compiled

# What one round has found: measure, contestant, figure.
Figures = defaultdict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Spread:
    """Figures of many rounds: their median, and the quartiles between which half of them are."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    @property
    def doubt(self) -> float:
        """By which share of itself the median may be off: 1.57 quartile distances / sqrt(rounds) either way is 95 %."""
        return 1.57 * (self.high - self.low) / self.rounds**0.5 / abs(self.median) if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that is measured of each contestant."""

    title: str
    unit: str
    factor: float = 1.0  # from the figures, in seconds or pieces, to the unit
    best: Callable[[Iterable[float]], float] = min


@dataclass(frozen=True, slots=True)
class Claim:
    """What we want to be true of a round's figures."""

    what: str
    value: Callable[[Figures], float]
    at_most: float | None = None
    at_least: float | None = None
    at_least_on: Mapping[str, float] = field(default_factory=dict)  # other versions of Python
    unit: str = "x"

    @property
    def target(self) -> str:
        """The bound in words; empty if the figure is only told."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g} {self.unit}"
        others = [f"{bound:g} on {python}" for python, bound in self.at_least_on.items()]
        return ", ".join([f"≥ {self.at_least:g} {self.unit}", *others]) if self.at_least is not None else ""

    def is_met_by(self, figure: float, python: str = "") -> bool:
        """Whether the figure is within the bound of this version of Python."""
        if self.at_most is not None:
            return figure <= self.at_most
        return self.at_least is None or figure >= self.at_least_on.get(python, self.at_least)

    def loss(self, before: float, now: float) -> float:
        """By which share the figure has become worse; negative if it has become better."""
        worse, better = (now, before) if self.at_most is not None else (before, now)
        if worse == better:
            return 0.0
        return worse / better - 1 if better > 0 else math.inf


def ratio(measure: str, name: str, other: str) -> Callable[[Figures], float]:
    """Divide a contestant's figure by another's."""
    return lambda of: of[measure][name] / of[measure][other]


def throughput_of(
    peer: str, at_least: float | None = None, measure: str = "time", at_least_on: Mapping[str, float] | None = None
) -> Claim:
    """Claim that we do so many times as much as a peer in the same time."""
    where = "" if measure == "time" else f", {measure}"
    value = ratio(measure, peer, OURS)
    return Claim(f"throughput beside {peer}{where}", value, at_least=at_least, at_least_on=at_least_on or {})


@dataclass(frozen=True, slots=True)
class Effort:
    """How much time is spent."""

    rounds: tuple[int, int]  # at least and at most
    moment: float  # about how long a contestant works in a round, in seconds
    share: float = 1.0  # of the sizes of crowds
    time: float = 1.0  # share of a benchmark's time


FULL = Effort(rounds=(9, 300), moment=0.03)
QUICK = Effort(rounds=(5, 100), moment=0.02, time=0.3)
TINY = Effort(rounds=(2, 2), moment=0.0, share=0.02)
ENOUGH = 0.01  # no more rounds when all medians of ratios are known to 1 %


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A group of contestants, what is measured of them, and what we claim."""

    title: str
    run: Callable[["Rounds"], None]
    measures: Mapping[str, Measure]
    claims: tuple[Claim, ...] = ()
    beside: str = ""  # the contestant with which the tables compare each one
    budget: float = 30.0  # seconds
    notes: Mapping[str, str] = field(default_factory=dict)  # about contestants


class Rounds:
    """Iterates over the rounds; the loop's body fills in the figures."""

    def __init__(self, benchmark: Benchmark, effort: Effort) -> None:
        self.effort = effort
        self.played: list[Figures] = []
        self._benchmark = benchmark
        self._last: Figures = defaultdict(dict)
        self._dice = random.Random(0)  # noqa: S311 - only the order of contestants

    def __iter__(self) -> Iterator[Figures]:
        self._last = defaultdict(dict)
        yield self._last  # warms up, and tells how much work fills a moment
        began = time.perf_counter()
        while not self._is_enough(time.perf_counter() - began):
            figures: Figures = defaultdict(dict)
            gc.unfreeze()
            gc.collect()
            gc.freeze()  # what others have left in memory does not make anybody's collections longer
            yield figures
            self.played.append(figures)
            self._last = figures
        gc.unfreeze()

    def in_any_order(self, names: Iterable[str]) -> list[str]:
        """Shuffle the contestants, so that none profits from its predecessor."""
        order = list(names)
        self._dice.shuffle(order)
        return order

    def operations(self, name: str, least: int, measure: str = "time") -> int:
        """How many operations of this contestant fill a moment, by what one took in the last round."""
        least = self.size(least)
        last = self._last[measure].get(name)
        return max(least, int(self.effort.moment / last)) if last else least

    def size(self, full: int) -> int:
        """A number that is smaller when only the code is to be tried."""
        return max(1, int(full * self.effort.share))

    def claimed(self) -> dict[str, Spread]:
        """What the rounds say to the claims."""
        return {
            claim.what: Spread.of([claim.value(figures) for figures in self.played]) for claim in self._benchmark.claims
        }

    def measured(self) -> dict[str, dict[str, Spread]]:
        """What the rounds say of each contestant, by measure."""
        return self._by_measure(lambda measure, name: lambda of: of[measure][name])

    def compared(self) -> dict[str, dict[str, Spread]]:
        """The ratios to the contestant that all are compared with, by measure."""
        beside = self._benchmark.beside
        return self._by_measure(lambda measure, name: ratio(measure, name, beside)) if beside else {}

    def _by_measure(self, value: Callable[[str, str], Callable[[Figures], float]]) -> dict[str, dict[str, Spread]]:
        return {
            measure: {
                name: Spread.of([value(measure, name)(figures) for figures in self.played])
                for name in self.played[0][measure]
            }
            for measure in self._benchmark.measures
        }

    def _is_enough(self, spent: float) -> bool:
        at_least, at_most = self.effort.rounds
        if len(self.played) < at_least:
            return False
        if len(self.played) >= at_most or spent > self._benchmark.budget * self.effort.time:
            return True
        return len(self.played) > 2 * at_least and all(spread.doubt < ENOUGH for spread in self.claimed().values())

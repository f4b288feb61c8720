"""Storm: many log lines of one kind are one line a second, with a count."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

from ..errors import describe
from .current import current_loop
from .log import facts, logger
from .loop import Loop

NO_FACTS: Mapping[str, object] = {}

# A line sums up this many seconds; a storm without a new event for as long is over.
WINDOW = 1.0

# A line names this many kinds of events, the most frequent first.
MOST_NAMED = 10

# This many kinds of failures have storms of their own; all further kinds share one.
MOST_KINDS = 50


class Storm:
    """Logs the first event at once, those of each later second as one line, and the end of the storm.

    A single event stays a single line.
    """

    def __init__(
        self,
        events: str,
        level: int = logging.WARNING,
        extra: Mapping[str, object] = NO_FACTS,
        clock: Callable[[], float] = time.monotonic,
        find_loop: Callable[[], Loop | None] = current_loop,
    ) -> None:
        """Begin calm.

        Args:
            events: What is counted, as the log names it.
            level: Of the lines.
            extra: The facts of each line.
            clock: Returns the time in seconds.
            find_loop: Returns the loop for the timer.
        """
        self._extra = extra
        self._find_loop = find_loop
        self._events = events
        self._level = level
        self._clock = clock
        # Protects all below; nothing is logged under it. The garbage collector may run under the lock, and what
        # it ends may be counted here too: such a count may be lost, but the thread does not hang.
        self._lock = threading.RLock()
        self._began_at = 0.0
        self._window_at: float | None = None  # when the current second began; None while it is calm
        self._last_at = 0.0
        self._total = 0
        self._counts: Counter[str] = Counter()  # of this second, without the storm's first event
        self._last = ""

    def note(self, what: str, line: str, **own: object) -> None:
        """Log an event, or count it; from any thread.

        Args:
            what: The kind that it counts as; there are few.
            line: What to log of it.
            own: Its own facts.
        """
        now = self._clock()
        window_at = self._window_at  # read once: another thread may end the storm
        if window_at is not None and now - window_at >= WINDOW:
            self.sum_up()  # the timer's loop is busy, or has ended
        with self._lock:
            self._last_at = now
            self._total += 1
            is_first = self._window_at is None
            if is_first:
                self._began_at = self._window_at = now
            else:
                self._counts[what] += 1
                self._last = line
        if is_first:
            logger.log(self._level, "%s", line, extra={**self._extra, **own, "count": 1})
            self._set_timer()

    def sum_up(self) -> None:
        """Log the counted events; if there are none, the storm is over."""
        with self._lock:
            if self._window_at is None:
                return
            counts, self._counts = self._counts, Counter()
            last, self._last = self._last, ""
            total, seconds = self._total, self._last_at - self._began_at
            if counts:
                self._window_at = self._clock()
            else:
                self._window_at = None
                self._total = 0
        if counts:
            named = ", ".join(f"{what} ({count:,} times)" for what, count in counts.most_common(MOST_NAMED))
            others = f" and {len(counts) - MOST_NAMED} other kinds" if len(counts) > MOST_NAMED else ""
            text = f"{counts.total():,} more {self._events} within a second: {named}{others}; the last: {last}"
            found = {"count": counts.total(), "counts": dict(counts.most_common(MOST_NAMED))}
            logger.log(self._level, "%s", text, extra={**self._extra, **found})
        elif total > 1:
            text = f"no more {self._events} for a second; there were {total:,} within {seconds:.1f} s"
            logger.log(self._level, "%s", text, extra={**self._extra, "count": total, "lasted": seconds})

    def end(self) -> None:
        """Log the events that were only counted, since no more will come."""
        self.sum_up()
        self.sum_up()

    def _set_timer(self) -> None:
        loop = self._find_loop()
        if loop is None:  # the next event sums up
            return

        def set_timer() -> None:
            loop.call_later(WINDOW, self._ring)

        with suppress(RuntimeError):  # the loop is ending
            if loop.is_here():
                set_timer()
            else:
                loop.call_soon(set_timer)

    def _ring(self) -> None:
        self.sum_up()
        if self._window_at is not None:
            self._set_timer()


class Failures:
    """Logs what the hooks and listeners of a pool raise; each kind of failure has a storm of its own."""

    def __init__(self, pool: str) -> None:
        """Begin with a calm log."""
        self._pool = pool
        self._storms: dict[tuple[str, str, int], Storm] = {}
        self.loop: Loop | None = None  # the pool's, for the timer

    def note(self, of: str, error: BaseException, *, level: int = logging.WARNING, place: str = "") -> None:
        """Log that a hook or a method of a listener has failed, or count it; from any thread.

        Args:
            of: What has failed.
            error: What it raised.
            level: How grave that is.
            place: Where it was raised, if the line is to show that.
        """
        text = describe(error)
        self.say(of, text, f"{of} failed with {text}{place}", level, error=type(error).__name__)

    def say(self, of: str, what: str, line: str, level: int = logging.WARNING, **own: object) -> None:
        """Log a failure with a given text and its own facts, or count it; from any thread."""
        kind = (of, what, level)
        if kind not in self._storms and len(self._storms) >= MOST_KINDS:
            kind = (of, "", level)
        storm = self._storms.get(kind)
        if storm is None:
            extra = facts("hook_failed", self._pool, hook=of)
            made = Storm(f"failures of {of} in pool {self._pool!r}", level, extra, find_loop=lambda: self.loop)
            storm = self._storms.setdefault(kind, made)
        storm.note(what, f"pool {self._pool!r}: {line}", **own)

    def end(self) -> None:
        """Log the failures that were only counted: the pool is closed."""
        for storm in tuple(self._storms.values()):
            storm.end()

    def fork(self) -> None:  # pragma: no cover - in a process of its own, see tests/runtime/test_fork.py
        """Begin anew in a forked child, without locks that another thread of the parent may have held."""
        self._storms = {}
        self.loop = None

"""Share: a member's own books: what was granted to it, what it uses of that, and until when it may rely on it."""

from dataclasses import dataclass

# A grant is relied on for this part of its time-to-live, counted from before it was asked for: clocks differ in speed.
RELIABLE = 0.95


@dataclass(frozen=True, slots=True)
class Request:
    """What a member asks for in one call.

    Attributes:
        turn: The number of the call; a later call has a higher one.
        want: How many tokens the member could use.
        has: How many it was granted before, and has not given back.
        claim: The same, but 0 if the grant may have gone to others meanwhile.
        sent_at: When the call began.
    """

    turn: int
    want: int
    has: int
    claim: int
    sent_at: float


class Share:
    """Decides whether the pool may use a token; pure, `now` is the member's own monotonic clock.

    Attributes:
        granted: How many tokens the member may use, while it may rely on the grant.
        used: How many tokens the pool has taken.
        waiting: How many tasks of the pool wait for a token.
    """

    def __init__(self, ttl: float) -> None:
        self.granted = 0
        self.used = 0
        self.waiting = 0
        self._wanted = 0  # by the last call
        self._turn = 0
        self._is_away = False  # the engine, as far as is known
        self._ttl = ttl
        self._reliable_until = float("-inf")

    def take(self, now: float) -> bool:
        """Use a token; False if none is left, or the grant may have gone to others meanwhile."""
        if self.used >= self.granted or not self.is_reliable(now):
            return False
        self.used += 1
        return True

    def give_back(self) -> None:
        """Give a token back: to the others, unless the engine is away."""
        self.used -= 1
        if self.granted > self.used and not self._is_away:
            self.granted -= 1

    def is_reliable(self, now: float) -> bool:
        """Whether no other member can have got this one's tokens."""
        return now < self._reliable_until

    def wants_more(self) -> bool:
        """Whether the pool needs more tokens than it has asked for."""
        return self.used + self.waiting > self._wanted

    def is_hungry(self) -> bool:
        """Whether the pool needs more tokens than it was granted, and the engine is there to ask."""
        return self.used + self.waiting > self.granted and not self._is_away

    def ask(self, now: float) -> Request:
        """Begin a call; unless the engine is away, the pool no longer relies on what it does not need."""
        needed = self.used + self.waiting
        self._wanted = max(needed, self.granted) if self._is_away else needed
        self._turn += 1
        self.granted = min(self.granted, self._wanted)
        claim = self.granted if self.is_reliable(now) else 0
        return Request(self._turn, self._wanted, self.granted, claim, now)

    def grant(self, request: Request, granted: int) -> int:
        """End a call with its answer; returns how many tokens the pool uses beyond the grant."""
        self.granted = granted
        self._is_away = False
        self._reliable_until = request.sent_at + RELIABLE * self._ttl
        return max(0, self.used - granted)

    def fail(self, request: Request) -> None:
        """End a call without an answer, since the engine is away; a grant that was reliable stands.

        An engine that comes back grants nothing new for one time-to-live.
        """
        self._is_away = True
        if self.is_reliable(request.sent_at):
            self._reliable_until = request.sent_at + RELIABLE * self._ttl

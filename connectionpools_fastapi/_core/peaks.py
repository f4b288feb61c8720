"""Peaks: the most that was in use, and the most that waited, in the last minute."""

from collections import deque

from .slot import LONG_AGO

# How far back peaks go, and how finely, in seconds.
SPAN = 60.0
PIECE = 10.0


class Peaks:
    """Highest counts by pieces of time. A piece ends as it is read, so that leases pay nothing for it."""

    def __init__(self) -> None:
        self.began_at = LONG_AGO  # of the piece that goes on
        self._pieces: deque[tuple[float, int, int]] = deque()  # when each ended, with its peaks

    def of(self, taken: int, waiting: int) -> tuple[int, int]:
        """Return the peaks of all pieces, the one that goes on included, of which these are the peaks."""
        return (
            max(taken, *(peak for _, peak, _ in self._pieces), 0),
            max(waiting, *(peak for _, _, peak in self._pieces), 0),
        )

    def end_piece(self, taken: int, waiting: int, now: float) -> bool:
        """Drop old pieces; whether the one that goes on, with these peaks, was long enough and has ended."""
        pieces = self._pieces
        while pieces and pieces[0][0] <= now - SPAN:
            pieces.popleft()
        if now < self.began_at + PIECE:
            return False
        pieces.append((now, taken, waiting))
        self.began_at = now
        return True

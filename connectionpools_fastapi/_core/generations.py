"""Generations: which resources are current, and which older ones are not gone yet."""

import sys
from collections import Counter
from typing import Generic

from .slot import T
from .waiter import Waiter

# The generation of resources that are still leased, but that `close` no longer waits for.
LOST = sys.maxsize


class Generations(Generic[T]):
    """Counts resources by generation, from the start of `create` to the end of `clean`.

    Only resources of the current generation are used again. Beginning the next one retires
    all that exist; a caller that waits for their end waits until the older ones are gone.
    """

    def __init__(self) -> None:
        self.current = 0
        self._population: Counter[int] = Counter()
        self._leavers: list[tuple[int, Waiter[T]]] = []

    def next(self) -> int:
        """Begin a new generation; returns the one that it retires."""
        retired = self.current
        self.current += 1
        return retired

    def enter(self) -> int:
        """Count one in; returns its generation."""
        self._population[self.current] += 1
        return self.current

    def enter_lost(self) -> int:
        """Count one in among those that `close` no longer waits for; returns their generation."""
        self._population[LOST] += 1
        return LOST

    def leave(self, generation: int) -> list[Waiter[T]]:
        """Count one out; returns the waiters whose wait is over."""
        self._population[generation] -= 1
        if self._population[generation]:
            return []
        del self._population[generation]
        content = [waiter for awaited, waiter in self._leavers if self.is_gone(awaited)]
        self._leavers = [entry for entry in self._leavers if entry[1] not in content]
        return content

    def watch(self, waiter: Waiter[T], generation: int) -> None:
        """Have `leave` return this waiter once the generation and all before it are gone."""
        self._leavers.append((generation, waiter))

    def forget(self, waiter: Waiter[T]) -> None:
        """No longer return this waiter."""
        self._leavers = [entry for entry in self._leavers if entry[1] is not waiter]

    def is_gone(self, generation: int) -> bool:
        """Whether nothing of this generation or an older one is left."""
        return all(other > generation for other in self._population)

    def are_turning_over(self) -> bool:
        """Whether something of an older generation is left."""
        return len(self._population) != (self.current in self._population)

    def population(self, generation: int) -> int:
        """How many there are of one generation."""
        return self._population[generation]

    def total(self) -> int:
        """How many there are of all generations."""
        return self._population.total()

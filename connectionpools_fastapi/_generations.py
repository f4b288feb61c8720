"""Generations: which resources are current, and which older ones are not gone yet."""

import sys
from collections import Counter
from typing import Generic

from ._waiters import Waiter
from .manager import T

# Of resources that nobody waits for any more, but which are still out.
LOST = sys.maxsize


class Generations(Generic[T]):
    """Counts resources by generation, from the start of `create` to the end of `clean`.

    Only resources of the current generation are used again. To retire all that exist is
    to begin the next one; to wait for them is to wait until the older ones are gone.
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
        """Count one in among those that nobody waits for; returns their generation."""
        self._population[LOST] += 1
        return LOST

    def leave(self, generation: int) -> list[Waiter[T]]:
        """Count one out; returns who waited for just that."""
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

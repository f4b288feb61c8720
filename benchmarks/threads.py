"""Contestants in plain threads."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from connectionpools_fastapi import ConnectionPool

Enter = Callable[[], AbstractContextManager[object]]
THREADS = 8
RESOURCES = 4


class QueuePool:
    """queue.LifoQueue in a context manager."""

    def __init__(self, size: int) -> None:
        self._queue: queue.LifoQueue[object] = queue.LifoQueue()
        for _ in range(size):
            self._queue.put(object())

    @contextmanager
    def lease(self) -> Iterator[object]:
        resource = self._queue.get()
        try:
            yield resource
        finally:
            self._queue.put(resource)


@contextmanager
def a_bare_queue() -> Iterator[Enter]:
    yield QueuePool(RESOURCES).lease


@contextmanager
def our_pool() -> Iterator[Enter]:
    with ConnectionPool(create=object, limit=RESOURCES, timeout=60) as pool:
        yield pool.lease


def crowd(enter: Enter, operations: int) -> None:
    def one() -> None:
        for _ in range(max(1, operations // THREADS)):
            with enter():
                pass

    crowd = [threading.Thread(target=one) for _ in range(THREADS)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()


def timed(contestant: Callable[[], AbstractContextManager[Enter]]) -> Callable[[int], float]:
    def run(operations: int) -> float:
        with contestant() as enter:
            crowd(enter, RESOURCES * THREADS)  # warm: resources exist before the clock starts
            start = time.perf_counter()
            crowd(enter, operations)
            return time.perf_counter() - start

    return run


CROWD = {
    "queue.LifoQueue": timed(a_bare_queue),
    "connectionpools_fastapi": timed(our_pool),
}

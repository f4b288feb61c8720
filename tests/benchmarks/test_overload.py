"""The benchmark of overload over HTTP runs, and counts what its clients see."""

from benchmarks import overload


def test_each_pool_serves_some_of_twice_its_capacity() -> None:
    """It takes some seconds, since each pool is served by a process of its own, and watched after the load."""
    rows, points = overload.measure(0.2, (2.0,), watch=0.2)
    assert len(rows) == len(overload.POOLS)
    assert all(goodput > 0 for line in points.values() for _, goodput in line)

"""Quantiles: how long most took, read from the counts of a histogram."""

from typing import Any


def quantile(histogram: dict[str, Any], share: float) -> float | None:
    """Return the duration that a share of all stays within.

    Args:
        histogram: The plain values of a `Histogram`.
        share: Above 0, at most 1.

    Returns:
        Seconds, exact to the width of the histogram's interval; the highest bound for all beyond it; None if nothing
        was recorded.
    """
    bounds, counts = histogram["bounds"], histogram["counts"]
    wanted = share * sum(counts)
    below, low = 0, 0.0
    for high, count in zip(bounds, counts, strict=False):
        if count and below + count >= wanted:
            return float(low + (high - low) * (wanted - below) / count)
        below, low = below + count, high
    return float(bounds[-1]) if sum(counts) else None


def quantiles(histogram: dict[str, Any] | None) -> dict[str, float | None]:
    """Return the median, and what 95 % and 99 % stay within."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {name: quantile(histogram, share) if histogram else None for name, share in shares.items()}

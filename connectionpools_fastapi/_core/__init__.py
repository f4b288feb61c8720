"""The decisions: pure, without lock, clock, await, thread or logging."""

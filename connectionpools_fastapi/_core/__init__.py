"""The decisions: pure, without lock, clock, await, thread or logging."""

from .._acceleration import compiled_path

__path__[:0] = compiled_path(__name__)

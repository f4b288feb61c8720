"""Carries decisions out: locks, loops, waiters, hooks, timers."""

from .._acceleration import compiled_path

__path__[:0] = compiled_path(__name__)

"""Carries decisions out: locks, loops, waiters, hooks, timers."""

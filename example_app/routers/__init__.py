"""Routers: one module a concern."""

"""Drivers' own pools, one driver a file."""

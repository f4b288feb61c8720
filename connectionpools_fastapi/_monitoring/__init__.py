"""Health, metrics, and drivers' own pools."""

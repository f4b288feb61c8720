"""Managers for common drivers, one a module; importing one imports only its driver."""

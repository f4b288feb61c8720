"""Managers for drivers that are in common use, one a module; importing one imports only its driver."""

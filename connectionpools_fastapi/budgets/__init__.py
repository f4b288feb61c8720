"""Budgets: engines that count the resources of several processes; each file is one engine."""

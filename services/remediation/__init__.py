"""Carries out orders: repairs as jobs with a gate at their end, rollbacks, stopping and resuming."""

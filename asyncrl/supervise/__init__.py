"""Keeping a run alive: watching the roles, restarting them, stopping them, diagnosing a failure."""

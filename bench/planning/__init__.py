"""Whether the simulator and what it picks are right: against the real replay, and against real engines."""

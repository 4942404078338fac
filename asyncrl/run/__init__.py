"""The folder of a run: its files, its lock, its metrics, and the state that a checkpoint records."""

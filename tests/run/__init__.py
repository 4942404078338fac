"""The run's folder and its metrics."""

"""The inputs of a run, and `asyncrl scale`."""

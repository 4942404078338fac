"""Seeing a run: the console, the recorder of metrics, the report."""

"""The console, the recorder and the report."""

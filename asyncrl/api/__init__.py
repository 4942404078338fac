"""`import asyncrl`: launching a run from Python, and reading what it left."""

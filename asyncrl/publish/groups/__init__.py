"""The process groups over which weights travel."""

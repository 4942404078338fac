"""Roles killed and frozen in a live run, again and again, and the run's books afterwards."""

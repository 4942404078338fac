"""Tests of asyncrl/environments/."""

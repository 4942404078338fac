"""Tests of asyncrl/api/."""

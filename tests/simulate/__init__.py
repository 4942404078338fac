"""Tests of asyncrl/simulate/."""

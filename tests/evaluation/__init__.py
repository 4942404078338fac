"""Tests of asyncrl/evaluation/."""

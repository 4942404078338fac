"""Tests of asyncrl/publish/groups/."""

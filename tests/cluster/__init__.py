"""Topologies and memory estimates, without Ray."""

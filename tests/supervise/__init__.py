"""Restarts, and nodes that leave the cluster."""

"""Advantages, losses, corrections, KL and aggregation against references computed another way."""

"""Reward functions, and the processes that run them under a time limit."""

"""Rows, prompts, their order, prepared data sets, the tiny model."""

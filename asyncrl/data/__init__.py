"""Prompts: reading rows, tokenizing, the order in which prompts are drawn; data sets and the tiny model."""

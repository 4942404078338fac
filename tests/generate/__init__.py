"""Engines, rollouts and the generator's loop, without vLLM."""

"""Inference engines behind one protocol: vLLM, or one of the user's own."""

"""Inference engines behind one protocol: vLLM, SGLang, or one of the user's own."""

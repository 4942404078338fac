"""An engine that starts in seconds, in place of vLLM, for soaks and tests."""

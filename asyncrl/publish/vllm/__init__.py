"""The worker's side of a publish in vLLM: finding slices, receiving, staging, the switch."""

"""The vLLM side of a publish: finding slices, staging, the switch; and vLLM's own NCCL engines."""

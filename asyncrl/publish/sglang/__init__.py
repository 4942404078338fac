"""The worker's side of a publish in SGLang."""

"""The policy that is trained: the sharded model, its log-probabilities, its optimizer."""

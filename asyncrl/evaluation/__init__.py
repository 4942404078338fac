"""`asyncrl eval`: how good a model is, with confidence intervals."""

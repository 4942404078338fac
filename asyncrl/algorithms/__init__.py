"""The objective's parts, pure functions on packed tensors: advantage, loss, correction, KL, aggregation."""

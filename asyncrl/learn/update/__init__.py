"""One learner step: a batch becomes mini-batches, micro-batches, a loss, an optimizer update."""

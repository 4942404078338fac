"""The learner: mini-batches, packing, objective, model, several ranks, checkpoints."""

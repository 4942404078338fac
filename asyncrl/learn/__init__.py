"""The learner: the loop of a rank, rank 0's coordinator, the publish thread, checkpoints."""

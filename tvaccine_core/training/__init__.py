"""The training loop, its checkpoints, and the attack."""

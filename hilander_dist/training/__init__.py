"""Meta-training: what the networks are trained on, the loop, and what a checkpoint is told in the end."""

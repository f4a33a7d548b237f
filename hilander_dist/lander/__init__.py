"""LANDER: the network that scores edges and densities, its losses, level graphs, meta-training and checkpoints."""

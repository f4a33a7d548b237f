"""Scores of a level's edges and nodes by the network."""

"""Hierarchical clustering of embeddings with Hi-LANDER on a Ray cluster."""

__version__ = "0.1.0"

__all__ = ["__version__"]

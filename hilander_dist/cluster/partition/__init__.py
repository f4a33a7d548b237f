"""Partitions of a weighted graph: pure functions on arrays, without Ray."""

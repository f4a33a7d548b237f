"""Log-odds of edges in steps of 1/64, and what they become at a shift: tables instead of an exponential for each edge and level.

Shapes: N nodes, K neighbours, Q = 2,049 steps.
"""

import math

import numpy as np

STEP = 64
"""Steps of one unit: a probability is off by at most .002."""

MOST = 16 * STEP
"""Log-odds are cut at 16 in either direction, 1e-7 of certainty."""

ONE = 2**20
"""Fixed point of a probability or weight of 1: sums stay below 2**63 for 2**43 edges."""


def quantise(logit_NK: np.ndarray) -> np.ndarray:
    """Log-odds in steps, int16 from -MOST to MOST."""
    steps: np.ndarray = np.rint(np.clip(logit_NK, -16, 16) * STEP).astype(np.int16)
    return steps


def probabilities(shift: float) -> np.ndarray:
    """The probability at each step, -MOST first, with ``shift`` added to the log-odds: int64 (Q) in units of 1 / ONE."""
    chance_Q = 1 / (1 + np.exp(-(np.arange(-MOST, MOST + 1) / STEP + shift)))
    return np.asarray(np.rint(chance_Q * ONE), dtype=np.int64)


def weights(shift: float) -> np.ndarray:
    """The weight at each step: how far the probability is above one half, 0 from there down, ONE where it is certain: int64 (Q)."""
    return np.asarray(np.maximum(2 * probabilities(shift) - ONE, 0))


def histogram(step_E: np.ndarray) -> np.ndarray:
    """How many edges have each step, int64 (Q); histograms of parts add up."""
    counts: np.ndarray = np.bincount(step_E.astype(np.int64) + MOST, minlength=2 * MOST + 1)
    return counts


def mean_probability(edges_Q: np.ndarray, shift: float = 0.0) -> float:
    """Mean probability over the edges of a histogram; one half without any."""
    total = int(edges_Q.sum())
    return float(edges_Q @ probabilities(shift)) / ONE / total if total else 0.5


def share_above(edges_Q: np.ndarray, least: float) -> float:
    """Share of a histogram's edges with log-odds above ``least``; 0 without any."""
    return float(edges_Q[MOST + 1 + round(least * STEP) :].sum()) / max(int(edges_Q.sum()), 1)


def log_odds(p: float) -> float:
    """Of a probability, cut at 1e-6 from 0 and 1."""
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))

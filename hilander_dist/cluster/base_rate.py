"""The correction of edge probabilities by a level's base rate, the share of its edges that are of one class. Pure functions.

Shapes: N nodes, K neighbours, G intervals of log-odds.
"""

import math

import numpy as np

FIRST_TAU = 0.55
"""Tau of the merges that tell the base rate, about the middle of those among which one is chosen (``pipeline.calibration``). Were it
the tau that is asked for, a higher one would also find a lower base rate: off by .1, omniglot lost .14 of F, so .05."""

FAR = 2.5
"""A correction of the base rate by more log-odds than this is reported: the model may not suit the data. From a base rate of
.45 it is a share of edges inside clusters above .91 or below .06."""

_MOST_MOVED = 2.0
"""Log-odds by which the clusters may move the first correction. Where the first merges find nothing, or one cluster, all edges
would lose their weight or gain it, whatever tau. On five sets they moved it by -.3 to 1.0."""

ALONE = 0.06
"""Probabilities are not lowered so far that more than this share of the nodes has no edge above FIRST_TAU, unless they had none
before. Where classes are small against the lists, a low mean probability is right and is no reason to lower each of them: texts
and photos of 75 and 50 classes, 5 to 20 rows of each, lists of 80, F .10 to .21 without this limit and .65 to .84 with it. Omniglot,
the one set with a mean that is too high, has .583/.707, .631/.725 and .637/.728 at .03, .06 and .07 (left out, means of three
networks), texts of 20 a class .824/.838, .812/.825 and .805/.818 (general; more clusters a class than two at .07)."""

_GRID = np.linspace(-16.0, 16.0, 1025)


def base_rate_shift(share: float, base_rate: float) -> float:
    """Log-odds to add to every edge of a level for its share of same-class edges, log-odds of the level's estimated share
    less those of the share in training.

    The mean probability as the estimate is the first step of the EM for label shift (Saerens et al., 2002). Its further
    steps run away on embeddings that are hard: of .19, .86, .76 and .43 true share, the first step's .37, .65, .75 and .54
    became .04, 1, 1 and .69. The share of edges inside clusters found after that step (.26, .81, .83 and .61, and .80 for
    .83 where the mean was .66) is nearer where it matters; taken a second time, it runs away as well.
    """
    share = min(max(share, 1e-3), 1 - 1e-3)
    return _log_odds(share) - _log_odds(base_rate)


def count_best(logit_NK: np.ndarray, real_NK: np.ndarray) -> np.ndarray:
    """How many nodes have their most probable edge in each interval of log-odds, int64; for ``least_shift``.

    Args:
        logit_NK: log-odds of the edges.
        real_NK: where there is an edge; nodes without any are alone at any shift and do not count.
    """
    best_N = np.where(real_NK, logit_NK, -np.inf).max(1, initial=-np.inf)
    inside_N = np.clip(best_N[real_NK.any(1)], _GRID[0], _GRID[-1])
    return np.histogram(inside_N, _GRID)[0].astype(np.int64)


def least_shift(count_G: np.ndarray) -> float:
    """The lowest sensible log-odds to add to all edges, 0 or less; see ALONE.

    Args:
        count_G: ``count_best`` of a level, added over its shards.
    """
    below_G = np.cumsum(count_G)
    if below_G[-1] == 0:
        return 0.0
    lowest = float(_GRID[np.searchsorted(below_G, ALONE * below_G[-1], side="right")])
    return min(0.0, _log_odds(FIRST_TAU) - lowest)


def moved_shift(first: float, share: float, base_rate: float, least: float, whitened: bool = False) -> float:
    """``base_rate_shift`` of the share of edges inside clusters, not far from that of the mean probability, and not below
    ``least`` (``least_shift``).

    In vectors whitened by clusters, halfway there: the mean is the better of both (true shares of .19, .46, .76 and .86: means
    .25, .65, .92 and .89 after the first step, clusters .27, .70, .86 and .86). Sets differ: all the way, omniglot had 2.25 clusters a
    class by a general checkpoint, halfway 1.90, at the same F; at the lower one of both, digits have .780/.774, halfway .826/.815, and
    caltech101, left out, .945/.857 and .934/.843 (means of two networks).
    """
    moved = min(max(base_rate_shift(share, base_rate), first - _MOST_MOVED), first + _MOST_MOVED)
    return max((first + moved) / 2 if whitened else moved, least)


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))

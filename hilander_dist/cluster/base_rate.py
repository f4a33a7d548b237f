"""The correction of edge probabilities by a level's base rate, the share of its edges that are of one class. Pure functions."""

import math

FIRST_TAU = 0.55
"""Tau of the merges that tell the base rate: the middle of those among which one is chosen (``pipeline.calibration``). Were it
the tau that is asked for, a higher one would also find a lower base rate: off by .1, omniglot lost .14 of F, so .05."""

FAR = 2.5
"""A correction of the base rate by more log-odds than this is reported: the model may not suit the data. From a base rate of
.45 it is a share of edges inside clusters above .91 or below .06."""

_MOST_MOVED = 2.0
"""Log-odds by which the clusters may move the first correction. Where the first merges find nothing, or one cluster, all edges
would lose their weight or gain it, whatever tau. On five sets they moved it by -.3 to 1.0."""


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


def moved_shift(first: float, share: float, base_rate: float, whitened: bool = False) -> float:
    """``base_rate_shift`` of the share of edges inside clusters, not far from that of the mean probability.

    In vectors whitened by clusters, halfway there: the mean is the better of both (true shares of .19, .46, .76 and .86: means
    .25, .65, .92 and .89 after the first step, clusters .27, .70, .86 and .86). All the way omniglot has 2.25 clusters a class by
    the general checkpoint, halfway 1.90, at the same F; grocery left out loses .014/.006.
    """
    moved = min(max(base_rate_shift(share, base_rate), first - _MOST_MOVED), first + _MOST_MOVED)
    return (first + moved) / 2 if whitened else moved


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))

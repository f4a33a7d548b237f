"""When to doubt a run's clusters: each reason is one line with the remedy, for the log and the manifest."""

from collections.abc import Sequence

from hilander_dist.cluster.partition.level_choice import Choice, LevelStats
from hilander_dist.cluster.partition.log_odds import log_odds
from hilander_dist.lander.inference import Inference

FAR = 2.5
"""Log-odds between the mean probability and training's share of same-class edges. From .25 it is above .8 or below .03."""

COMMON = 0.99
"""Mean similarity of neighbours above which rows hardly differ by direction, as of embeddings with a common offset."""


def doubts(
    levels: Sequence[LevelStats],
    choice: Choice,
    rows: int,
    mean_probability: float,
    mean_similarity: float,
    inference: Inference,
) -> list[str]:
    """The reasons, if any.

    Args:
        levels: of the path.
        choice: among them.
        rows: that were clustered.
        mean_probability: of all edges, as scored.
        mean_similarity: of neighbours.
        inference: with training's base rate.
    """
    found = []
    clusters = levels[choice.level].clusters
    if rows > 1 and clusters == 1:
        found.append(
            "no clusters found: all rows are in one; if they should differ, look at lower levels with `hilander cut`"
        )
    elif rows > 1 and clusters == rows:
        found.append(
            "no clusters found: every row is alone; if some belong together, look at higher levels with `hilander cut`"
        )
    elif choice.reason == "code length":
        found.append(f"no clusters found that stand out: {choice.doubtful}")
    elif choice.doubtful:
        found.append(
            f"clusters may be too small or too large: {choice.doubtful}, or label a few hundred rows for `hilander tune`"
        )
    far = log_odds(mean_probability) - log_odds(inference.base_rate)
    if inference.shift is None and abs(far) > FAR:
        found.append(
            f"scores far {'above' if far > 0 else 'below'} training's (mean probability {mean_probability:.3f}, in training"
            f" {inference.base_rate:.3f}): look at a sample of the clusters, or label a few hundred rows for `hilander tune`"
        )
    if mean_similarity > COMMON:
        found.append(
            f"rows hardly differ (mean similarity of neighbours {mean_similarity:.4f}): subtract the mean of all embeddings from each"
            " if they have something in common, and keep vectors=float32"
        )
    return found

"""Which level of the path is the answer: a rule on numbers that each level has anyway.

A row with edge probabilities p to its neighbours expects as many companions among them as the p add up to. With a low shift of
the log-odds clusters are smaller than the (equally low) probabilities say, with a high one rows expect more than the level can
give. The first level at which more rows have fewer companions than they expect than have more is the one where scores and
clusters agree. Rows whose neighbours are all in their own cluster have nothing more to find, and count a little for going on.

Where no level has that, classes are small against the neighbour lists, or diffuse: then the scores are taken as they are, or,
where few rows have a probable edge at all, the level whose clusters describe a walk on the plain graph best.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hilander_dist.lander.inference import Inference


class LevelStats(NamedTuple):
    """What is known of a level of the path, over all shards."""

    shift: float
    clusters: int
    closed: int
    """Rows with edges whose neighbours are all in their own cluster."""
    above: int
    """Of the others, those with more neighbours in their own cluster than their probabilities add up to."""
    below: int
    """Of the others, the rest."""
    inside: int
    """Edges inside clusters."""
    expected: int
    """The sum of all edges' probabilities at the shift: how many would be inside if scores and clusters agreed."""
    codelength: int | None
    """Of the clusters on the graph with equal weights, bits a step in units of 2**-40; None where the rule does not ask."""


class Choice(NamedTuple):
    """The level that is the answer."""

    level: int
    reason: str
    """agreement, components, scores as they are, code length, asked for, or no edges."""
    doubtful: str | None
    """Why it may be wrong, and the remedy."""


def choose_level(levels: Sequence[LevelStats], linked: float, inference: Inference) -> Choice:
    """Choose.

    Args:
        levels: of the path, by ascending shift.
        linked: share of the rows with an edge above one half at shift 0.
        inference: its ``shift``, where a tuned checkpoint has one, and the rule's constants count.
    """
    if inference.shift is not None:
        asked = inference.shift
        return Choice(min(range(len(levels)), key=lambda at: abs(levels[at].shift - asked)), "asked for", None)
    rows = levels[0].closed + levels[0].above + levels[0].below
    if rows == 0:
        return Choice(0, "no edges", "no row has a similar one: look at the embeddings")
    components = [
        at for at, level in enumerate(levels) if level.clusters > 1 and level.closed >= inference.closed_share * rows
    ]
    begun = False
    for at, level in enumerate(levels):
        begun = begun or 2 * level.closed > rows
        if begun and level.below >= level.above + inference.closed_weight * level.closed:
            # Where most rows have found all their neighbours, the rest may be a class that comes together later.
            if components and 2 * level.closed > rows:
                break
            after = levels[min(at + 1, len(levels) - 1)]
            # Large classes still come together, beside small ones that are complete: more edges than the shift lets expect.
            if after.clusters > 1 and after.inside - level.inside > after.expected - level.expected:
                continue
            return Choice(at, "agreement", None)
        begun = begun or level.closed + level.above > level.below
    if components:
        return Choice(components[0], "components", None)
    if 2 * levels[-1].closed > rows and levels[-1].clusters > 1:
        return Choice(len(levels) - 1, "components", None)
    if linked >= inference.least_linked:
        at = min(range(len(levels)), key=lambda at: abs(levels[at].shift))
        return Choice(
            at, "scores as they are", "no level agrees with its scores: look at other levels with `hilander cut`"
        )
    lengths = [level.codelength for level in levels]
    at = min(range(len(levels)), key=lambda at: (lengths[at] is None, lengths[at]))
    return Choice(at, "code length", "few rows have a probable neighbour: look at other levels with `hilander cut`")

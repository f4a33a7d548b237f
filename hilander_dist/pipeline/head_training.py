"""Training of a relational model's heads (``lander.relational.ClusterHead``): what both have in common."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from hilander_dist.cluster.flow_links import flow_clusters
from hilander_dist.cluster.flow_rounds import whole_trees
from hilander_dist.cluster.local import graph_pairs, mean_shift, score_graph, tree_roots
from hilander_dist.cluster.pairs import Clusters
from hilander_dist.lander.relational import CarefulHead, ClusterHead, RelationalLander, join_head
from hilander_dist.pipeline.meta_training import Episodes
from hilander_dist.tasks import Block, Ref, Tasks

LEAST_ROWS, LEAST_NEIGHBOURS = 50, 30
"""Smaller episodes tell little of clusters."""

LEAST_CLASSES = 20
"""With fewer, those held out included, heads stay untrained. Learned from three classes of digits, the head of pairs joined digits that
it had not seen by one network of three (.808/.814, so .587/.687)."""

STEPS, BATCH, LEARNING_RATE, DECAY = 1500, 1024, 3e-3, 1e-2


def first_of_each(episodes: Episodes, of_one: int, of_several: int) -> list[tuple[str, ...]]:
    """URIs of the first training episodes of each data set: so many where there is one set, and where there are several."""
    count = of_several if len(episodes.training) > 1 else of_one
    return [uris[:count] for uris in episodes.training]


def is_large(nbr_NK: np.ndarray) -> bool:
    """Whether an episode's graph is large enough to tell of clusters."""
    return len(nbr_NK) >= LEAST_ROWS and nbr_NK.shape[1] >= LEAST_NEIGHBOURS


def most_common(group_N: np.ndarray, class_N: np.ndarray) -> np.ndarray:
    """The most common class of each cluster."""
    table = np.zeros((group_N.max() + 1, class_N.max() + 1), dtype=np.int32)
    np.add.at(table, (group_N, class_N), 1)
    return np.asarray(table.argmax(1))


class Flow(NamedTuple):
    """An episode clustered by the map equation at one tau."""

    logit_NK: np.ndarray
    """float32 log-odds of the edges."""
    shift: float
    """For the base rate of the mean probability."""
    clusters: Clusters
    label_N: np.ndarray
    """int64 cluster of each node, from 0 up."""


def flow_episode(model: RelationalLander, episode: Block, taus: Sequence[float]) -> Iterator[Flow]:
    """The episode's clusters at each tau; none where it is small."""
    nbr_NK = episode["nbr_NK"].astype(np.int64)
    if not is_large(nbr_NK):
        return
    logit_NK, density_N = score_graph(model, episode)
    assert model.calibration is not None
    root_N = tree_roots(nbr_NK, logit_NK, density_N, model.calibration)
    shift = mean_shift(nbr_NK, logit_NK, model.calibration)
    for tau in taus:
        pairs = graph_pairs(nbr_NK, logit_NK, root_N, shift, tau, model.calibration.rest)
        clusters, group_R = flow_clusters(*whole_trees(pairs))
        yield Flow(logit_NK, shift, clusters, group_R[np.searchsorted(pairs["root_M"], root_N)])


def fit_careful(tasks: Tasks, examples: list[list[Ref]], seed: int) -> CarefulHead:
    """Train a head of joins: one member for each data set, on the examples of all others; of one set alone, on its own.

    One head for all sets joined most people with one photo by one general checkpoint of three: synthetic faces .971/.964 without
    joins, .708/.672 with them, .971/.963 with four members, which keep what joins win elsewhere. Nothing of the kind for the other
    two. Members for pairs, the lowest answer above .7, leave large classes in parts (caltech101 left out .855/.837, with one head
    .936/.838 as the two closest parts have .37, .72 and .75; two texts that should stay apart have .43 to .81). Members for halves
    lose what splits win (caltech101 .926/.842, with one head .952/.881). One with too few examples stays untrained: then nothing
    is joined.

    Args:
        tasks: where to run.
        examples: of the episodes, per data set.
        seed: of the training.
    """
    others = [examples[:at] + examples[at + 1 :] or examples for at in range(len(examples))]
    fitted = [
        tasks.call(fit_head, [ref for domain in domains for ref in domain], member, seed)
        for domains, member in zip(others, join_head(len(examples)).members, strict=True)
    ]
    return CarefulHead(tasks.get(fitted))


def fit_head(examples: list[Block], head: ClusterHead, seed: int) -> ClusterHead:
    """Train a head on examples by weighted cross-entropy; with fewer than BATCH it stays untrained."""
    inputs_EF, same_E, weight_E = (
        torch.from_numpy(np.concatenate([block[name] for block in examples]))
        for name in ("inputs_EF", "same_E", "weight_E")
    )
    if len(same_E) < BATCH:
        return head
    torch.manual_seed(seed)
    for layer in head.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
    torch.nn.init.kaiming_uniform_(head.out.weight)
    torch.nn.init.zeros_(head.out.bias)
    head.mean_F, head.deviation_F = inputs_EF.mean(0), inputs_EF.std(0) + 1e-6
    weight_E = weight_E / weight_E.mean()
    optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(same_E), (BATCH,))
        entropy_E = functional.binary_cross_entropy_with_logits(
            head(inputs_EF[batch]), same_E[batch].float(), reduction="none"
        )
        optimizer.zero_grad()
        (entropy_E * weight_E[batch]).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return head

"""Training of a relational model's heads of halves and of small clusters, on the clusters that its finished network makes of
training episodes.

An example is a cluster cut in two, or a pair of small clusters with edges between them; its label, whether most members of both
are of one class. Clusters come from the map equation at several taus, for pairs after splits. Episodes with classes moved together
are among them: there classes are merged that should not be. Those with classes divided give none: the head of halves then takes
classes for two (clinc150 left out, .835/.851 with them, .853/.866 without, .860/.875 before splits).
"""

import numpy as np
import ray

from hilander_dist.cluster.halves import cut_clusters, head_inputs, medians, split_clusters
from hilander_dist.cluster.joins import describe_pairs, may_join
from hilander_dist.cluster.local import graph_members, graph_neighbourhood, part_labels
from hilander_dist.exchange import concat_blocks, take_rows
from hilander_dist.lander.episode_course import read_episode
from hilander_dist.lander.relational import (
    HALF_INPUTS,
    CarefulHead,
    ClusterHead,
    RelationalLander,
    split_head,
)
from hilander_dist.pipeline.head_training import first_of_each, fit_careful, fit_head, flow_episode, most_common
from hilander_dist.pipeline.meta_training import Episodes
from hilander_dist.tasks import Block, Tasks

OF_ONE, OF_SEVERAL = 48, 80
"""Episodes of a data set, of one alone and of each of several, where two in five have divided classes. The others give some 70 cuts
each."""

SPLIT_TAUS = (0.45, 0.55, 0.65)

JOIN_TAUS = (0.5, 0.65, 0.8)
"""High ones leave classes in pieces."""

LEAST_CUTS = 3
"""Fewer have no median worth the name. With those of 16 and more alone, the head of one set has too few examples: clinc150 -.014."""

MOST_PAIRS = 10_000
"""Of an episode."""


def train_splits(tasks: Tasks, model: RelationalLander, episodes: Episodes, seed: int) -> ClusterHead:
    """The trained head of halves; every data set has the same number of episodes in it."""
    ref = ray.put(model)
    examples = [
        tasks.call(split_examples, ref, uri) for uris in first_of_each(episodes, OF_ONE, OF_SEVERAL) for uri in uris
    ]
    tasks.wait(examples, "splits")
    head: ClusterHead = tasks.get(tasks.call(fit_head, examples, split_head(), seed))
    return head


def train_joins(tasks: Tasks, model: RelationalLander, episodes: Episodes, seed: int) -> CarefulHead:
    """The trained head of small clusters; the model has its head of halves."""
    ref = ray.put(model)
    examples = [
        [tasks.call(join_examples, ref, uri, seed) for uri in uris]
        for uris in first_of_each(episodes, OF_ONE, OF_SEVERAL)
    ]
    tasks.wait([ref for domain in examples for ref in domain], "joins")
    return fit_careful(tasks, examples, seed)


def split_examples(model: RelationalLander, uri: str) -> Block:
    """An episode's cuts: inputs_EF float32, same_E bool, weight_E float32; none where classes were divided."""
    episode = read_episode(uri)
    if episode["divided_1"][0]:
        return _nothing()
    nbr_NK, class_N = episode["nbr_NK"].astype(np.int64), np.unique(episode["label_N"], return_inverse=True)[1]
    found = [_nothing()]
    for logit_NK, shift, _, label_N in flow_episode(model, episode, SPLIT_TAUS):
        node_M, members = graph_members(nbr_NK, logit_NK, shift, label_N)
        cuts = cut_clusters(members, nbr_NK.shape[1])
        if len(cuts.group_C) < LEAST_CUTS:
            continue
        inputs_CF = head_inputs(cuts.numbers_CF, medians(cuts.numbers_CF))
        half_M = members.group_M * 2 + cuts.half_M
        found.append(_examples(inputs_CF, half_M, class_N[node_M], cuts.group_C * 2, cuts.group_C * 2 + 1))
    return concat_blocks(found)


def join_examples(model: RelationalLander, uri: str, seed: int) -> Block:
    """An episode's pairs of small clusters: columns as of ``split_examples``."""
    episode = read_episode(uri)
    if episode["divided_1"][0]:
        return _nothing()
    nbr_NK, class_N = episode["nbr_NK"].astype(np.int64), np.unique(episode["label_N"], return_inverse=True)[1]
    neighbours = nbr_NK.shape[1]
    found = [_nothing()]
    for logit_NK, shift, _, merged_N in flow_episode(model, episode, JOIN_TAUS):
        node_M, members = graph_members(nbr_NK, logit_NK, shift, merged_N)
        cuts = cut_clusters(members, neighbours)
        if len(cuts.group_C) < LEAST_CUTS:
            continue
        usual = medians(cuts.numbers_CF)
        label_N = part_labels(node_M, members, split_clusters(model.split, members, neighbours, cuts, usual))
        around = graph_neighbourhood(nbr_NK, logit_NK, shift, label_N)
        at_P = np.flatnonzero(may_join(around.clusters, neighbours))
        inputs_PF = head_inputs(describe_pairs(around, neighbours, at_P), usual)
        found.append(_examples(inputs_PF, label_N, class_N, around.clusters.u_E[at_P], around.clusters.v_E[at_P]))
    every = concat_blocks(found)
    rng = np.random.default_rng([seed, *uri.encode()[-40:]])
    return take_rows(every, rng.permutation(len(every["same_E"]))[:MOST_PAIRS])


def _examples(
    inputs_EF: np.ndarray, group_N: np.ndarray, class_N: np.ndarray, one_E: np.ndarray, other_E: np.ndarray
) -> Block:
    """Examples of pairs of groups."""
    class_G, size_G = most_common(group_N, class_N), np.bincount(group_N)
    weight_E = np.sqrt(np.minimum(size_G[one_E], size_G[other_E])).astype(np.float32)
    return {"inputs_EF": inputs_EF, "same_E": class_G[one_E] == class_G[other_E], "weight_E": weight_E}


def _nothing() -> Block:
    empty = np.zeros((0, HALF_INPUTS), np.float32)
    return {"inputs_EF": empty, "same_E": np.zeros(0, bool), "weight_E": np.zeros(0, np.float32)}

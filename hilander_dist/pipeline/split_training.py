"""Training of a relational model's head of halves, on the clusters that its finished network makes of training episodes.

An example is a cluster cut in two; its label, whether most members of both halves are of one class. Clusters come from the map
equation at several taus. Episodes with classes moved together are among them: there classes are merged that should not be.
"""

import numpy as np
import ray

from hilander_dist.cluster.flow_links import flow_clusters, whole_trees
from hilander_dist.cluster.halves import cut_clusters, head_inputs, medians
from hilander_dist.cluster.local import graph_members, graph_pairs, mean_shift, score_graph, tree_roots
from hilander_dist.exchange import concat_blocks
from hilander_dist.lander.episode_course import read_episode
from hilander_dist.lander.relational import SPLIT_INPUTS, ClusterHead, RelationalLander, split_head
from hilander_dist.pipeline.head_training import fit_head, is_large, most_common
from hilander_dist.pipeline.meta_training import Episodes
from hilander_dist.tasks import Block, Tasks

EPISODES = 48
"""Of each data set; each gives some 70 examples."""

TAUS = (0.45, 0.55, 0.65)

LEAST_CUTS = 3
"""Fewer have no median worth the name. With those of 16 and more alone, the head of one set has too few examples: clinc150 -.014."""


def train_splits(tasks: Tasks, model: RelationalLander, episodes: Episodes, seed: int) -> ClusterHead:
    """The trained head; every data set has the same number of episodes in it."""
    ref = ray.put(model)
    examples = [tasks.call(split_examples, ref, uri) for domain in episodes.training for uri in domain[:EPISODES]]
    tasks.wait(examples, "splits")
    head: ClusterHead = tasks.get(tasks.call(fit_head, examples, split_head(), seed))
    return head


def split_examples(model: RelationalLander, uri: str) -> Block:
    """An episode's examples: inputs_EF float32, same_E bool, weight_E float32."""
    episode = read_episode(uri)
    nbr_NK, class_N = episode["nbr_NK"].astype(np.int64), np.unique(episode["label_N"], return_inverse=True)[1]
    nothing = np.zeros((0, SPLIT_INPUTS), np.float32)
    found = [{"inputs_EF": nothing, "same_E": np.zeros(0, bool), "weight_E": np.zeros(0, np.float32)}]
    if is_large(nbr_NK):
        logit_NK, density_N = score_graph(model, episode)
        assert model.calibration is not None
        root_N = tree_roots(nbr_NK, logit_NK, density_N, model.calibration)
        shift = mean_shift(nbr_NK, logit_NK, model.calibration)
        for tau in TAUS:
            pairs = graph_pairs(nbr_NK, logit_NK, root_N, shift, tau)
            group_R = flow_clusters(*whole_trees(pairs))[1]
            label_N = group_R[np.searchsorted(pairs["root_M"], root_N)]
            node_M, members = graph_members(nbr_NK, logit_NK, shift, label_N)
            cuts = cut_clusters(members, nbr_NK.shape[1])
            if len(cuts.group_C) < LEAST_CUTS:
                continue
            half_M = members.group_M * 2 + cuts.half_M
            class_H = most_common(half_M, class_N[node_M])
            size_H = np.bincount(half_M)
            one_C, other_C = cuts.group_C * 2, cuts.group_C * 2 + 1
            weight_C = np.sqrt(np.minimum(size_H[one_C], size_H[other_C])).astype(np.float32)
            inputs_CF = head_inputs(cuts.numbers_CF, medians(cuts.numbers_CF))
            same_C = class_H[one_C] == class_H[other_C]
            found.append({"inputs_EF": inputs_CF, "same_E": same_C, "weight_E": weight_C})
    return concat_blocks(found)

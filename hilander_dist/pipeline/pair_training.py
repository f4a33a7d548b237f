"""Training of a relational model's head of pairs, on the clusters that its finished network makes of training episodes.

An example is a pair of clusters with edges between them; its label, whether most members of both are of one class. Clusters
come from the map equation at several taus, and from random merges of pairs of one class, as later rounds will have them.
"""

import numpy as np
import ray

from hilander_dist.cluster.pairs import Clusters, contract, pair_inputs
from hilander_dist.exchange import concat_blocks, take_rows
from hilander_dist.lander.episode_course import read_episode
from hilander_dist.lander.relational import PAIR_INPUTS, ClusterHead, RelationalLander, pair_head
from hilander_dist.pipeline.head_training import first_of_each, fit_head, flow_episode, most_common
from hilander_dist.pipeline.meta_training import Episodes
from hilander_dist.tasks import Block, Tasks

OF_ONE, OF_SEVERAL = 96, 160
"""Episodes of a data set, of one alone and of each of several. Those with their classes as they are, three in ten or more, give
examples, some 10,000 each. With strangers among them, texts left out were joined by one network (.18/.70, without the head .83/.84).
With classes moved together, the head's merges hung on chance: of four networks that had not seen the set, clinc150 lost .010 to .035 of
F in two, and parts of one of caltech101's large classes stayed apart in one (.842/.824, without them .948/.859). With 30 such episodes
of each of three sets in the place of 50, one network joined texts (.03/.16, .85/.87) and one left parts apart (.81/.80, .96/.86)."""

TAUS = (0.5, 0.8, 0.95, 0.99)
"""High ones leave clusters apart that are obviously one. Without them the head had seen no such pairs, and left parts of 286
and 404 photos of one class apart, with a mean probability of .98 between them."""
ROUNDS = 3
MERGED = 0.3
"""Share of the pairs of one class that merge before the next round."""

MOST_EXAMPLES = 10_000
"""Of an episode."""


def train_pairs(tasks: Tasks, model: RelationalLander, episodes: Episodes, seed: int) -> ClusterHead:
    """The trained head; every data set has the same number of episodes in it."""
    assert model.calibration is not None
    ref = ray.put(model)
    uris = [uri for domain in first_of_each(episodes, OF_ONE, OF_SEVERAL) for uri in domain]
    examples = [tasks.call(pair_examples, ref, uri, seed) for uri in uris]
    tasks.wait(examples, "pairs")
    head: ClusterHead = tasks.get(tasks.call(fit_head, examples, pair_head(), seed))
    return head


def pair_examples(model: RelationalLander, uri: str, seed: int) -> Block:
    """An episode's examples: inputs_EF float32, same_E bool, weight_E float32.

    Clusters of all sizes are examples, as few of an episode's are larger than a list, and only with the base rate of the mean
    probability: the clusters that tell the other one are made with this head.
    """
    episode = read_episode(uri)
    neighbours, class_N = episode["nbr_NK"].shape[1], np.unique(episode["label_N"], return_inverse=True)[1]
    found: list[Block] = []
    rng = np.random.default_rng([seed, *uri.encode()[-40:]])
    if episode["plain_1"][0]:
        for flow in flow_episode(model, episode, TAUS):
            clusters, group_N = flow.clusters, flow.label_N
            for _ in range(ROUNDS):
                if len(clusters.u_E) == 0:
                    break
                class_C = most_common(group_N, class_N)
                same_E = class_C[clusters.u_E] == class_C[clusters.v_E]
                weight_E = np.sqrt(np.minimum(clusters.size_C[clusters.u_E], clusters.size_C[clusters.v_E]))
                inputs_EF = pair_inputs(clusters, neighbours)
                found.append({"inputs_EF": inputs_EF, "same_E": same_E, "weight_E": weight_E.astype(np.float32)})
                into_C = _random_merges(clusters, same_E, rng)
                clusters, group_N = contract(clusters, into_C), into_C[group_N]
    if not found:
        nothing = np.zeros((0, PAIR_INPUTS), np.float32)
        return {"inputs_EF": nothing, "same_E": np.zeros(0, bool), "weight_E": np.zeros(0, np.float32)}
    every = concat_blocks(found)
    return take_rows(every, rng.permutation(len(every["same_E"]))[:MOST_EXAMPLES])


def _random_merges(clusters: Clusters, same_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some disjoint pairs of one class merged: the new cluster of each cluster, from 0 up without gaps."""
    into_C = np.arange(len(clusters.size_C))
    free_C = np.ones(len(into_C), dtype=bool)
    for e in np.flatnonzero(same_E & (rng.random(len(same_E)) < MERGED)).tolist():
        u, v = clusters.u_E[e], clusters.v_E[e]
        if free_C[u] and free_C[v]:
            into_C[v] = u
            free_C[u] = free_C[v] = False
    return np.asarray(np.unique(into_C, return_inverse=True)[1])

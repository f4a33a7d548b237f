"""The paper's LANDER over the shards of a level, layer by layer (algorithm.md 1.5 to 1.7).

Each node's message and projection are computed once, at its owner, and each edge once. Messages travel once per layer, and source
projections once. Products run on full padded chunks (``scoring.halo``).
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from hilander_dist.cluster.hierarchy.features import cluster_means
from hilander_dist.cluster.scoring.halo import Halo, in_chunks, make_table, to_tensor
from hilander_dist.exchange import take_rows
from hilander_dist.knn.layout import Level
from hilander_dist.lander.model import Lander
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Loader, Ref, Tasks


def score_level(
    tasks: Tasks, model: Lander, model_ref: Ref, level: Level, graph: list[Ref], halo: Halo, prefix: str
) -> list[Ref]:
    """Run LANDER over a level.

    Returns:
        Per shard a block of p0_NK and p1_NK float32 (0 at pads) and density_N float32.
    """
    paths = [f"{prefix}/scores-{s:05d}.safetensors" for s in range(level.shards)]
    if tasks.saved.issuperset(paths):  # Nothing that they were made of need be read again.
        return [tasks.load(path) for path in paths]
    rows: list[Ref] = level.nodes
    inputs: list[tuple[Any, ...]] = []
    for layer in range(model.num_conv):
        if not model.sends_inputs:
            messages = [tasks.call(_messages, model_ref, layer, block) for block in rows]
            halos = halo.tables(tasks, messages)
        else:
            messages = [None] * level.shards
            with_means = model.config.uses_cluster_features
            halos = halo.tables(tasks, rows, functools.partial(take_features, with_means) if layer == 0 else take_rows)
        inputs = [(rows[s], messages[s], halos[s], halo.local[s], graph[s]) for s in range(level.shards)]
        if layer < model.num_conv - 1:
            hidden_paths = [f"{prefix}/hidden-{layer}-{s:05d}.safetensors" for s in range(level.shards)]
            rows = [
                tasks.call(_convolve, model_ref, layer, *given, save=path)
                for given, path in zip(inputs, hidden_paths, strict=True)
            ]
    src_paths, dst_paths = (
        [f"{prefix}/{kind}-{s:05d}.safetensors" for s in range(level.shards)] for kind in ("src", "dst")
    )
    src = [
        tasks.call(_convolve_and_project, model_ref, model.num_conv - 1, tasks.store, dst_path, *given, save=path)
        for given, path, dst_path in zip(inputs, src_paths, dst_paths, strict=True)
    ]
    halos = halo.tables(tasks, src)
    scores = [
        tasks.call(
            _score_edges,
            model_ref,
            src[s],
            halos[s],
            tasks.loader(dst_paths[s]),
            halo.local[s],
            graph[s],
            save=paths[s],
        )
        for s in range(level.shards)
    ]
    del rows, halos, messages, inputs, src
    tasks.wait(scores, f"{prefix} forward")
    return scores


def take_features(with_means: bool, nodes: Block, rows: np.ndarray | slice) -> Block:
    """What the inputs of these rows are made of: x, and where the model takes it c, unless it is x itself (level 0)."""
    features = {"x": nodes["x_ND"][rows].astype(np.float32, copy=False)}
    if with_means and "sum_ND" in nodes:
        features["c"] = cluster_means({name: nodes[name][rows] for name in ("sum_ND", "count_N")})
    return features


def _rows(model: Lander, block: Block) -> np.ndarray:
    """What a layer's table holds of a block's rows: h; in layer 0 [x ; c], or x alone where c is x or is not used."""
    if "h" in block:
        return block["h"]
    if "x_ND" in block:
        block = take_features(model.config.uses_cluster_features, block, slice(None))
    if "c" not in block:
        return block["x"]
    return model.inputs(to_tensor(block["x"]), to_tensor(block["c"])).numpy()


def _widened(model: Lander, layer: int, rows_BI: Tensor) -> Tensor:
    """A layer's input h from the rows of its table: [x ; x] from x at level 0."""
    narrow = layer == 0 and model.config.uses_cluster_features and rows_BI.shape[1] == model.dim
    return model.inputs(rows_BI, rows_BI) if narrow else rows_BI


def _messages(model: Lander, layer: int, block: Block) -> Block:
    return {"m": in_chunks(lambda rows: model.message(layer, _widened(model, layer, rows)), _rows(model, block))[0]}


def _convolve(model: Lander, layer: int, *given: Any) -> Block:
    (h,) = _layer(model, layer, lambda h_BI: (h_BI,), *given)
    return {"h": h}


def _convolve_and_project(model: Lander, layer: int, store: Storage, dst_path: str, *given: Any) -> Block:
    """The last layer: its output is needed for the edge head's two halves only, and is never a whole array.

    The half that only the shard itself needs goes to the storage, not to the object store, of which it would be a third.
    """
    src_NG, dst_NG = _layer(model, layer, model.project, *given)
    store.write_block(dst_path, {"dst": dst_NG})
    return {"src": src_NG}


def _layer(
    model: Lander,
    layer: int,
    then: Callable[[Tensor], tuple[Tensor, ...]],
    block: Block,
    messages: Block | None,
    halo: list[Block],
    local_NK: np.ndarray,
    graph: Block,
) -> list[np.ndarray]:
    """What ``then`` makes of the layer's output, chunk by chunk.

    Args:
        model: the network.
        layer: 0 .. num_conv - 1.
        then: of the output of a chunk.
        block: the shard's nodes in layer 0, else what the layer before left.
        messages: of the shard's nodes; None where the model sends its inputs.
        halo: messages, or rows as in ``block``, of the other shards' nodes that the graph points to.
        local_NK: the graph's neighbours as rows of the table.
        graph: the shard's sim_NK.
    """
    if messages is None:
        table_TI = _stacked([_rows(model, rows) for rows in (block, *halo)])
        own_NI = own_NM = table_TI[: len(local_NK)]
    else:
        table_TI = make_table(messages, halo)["m"]
        own_NI, own_NM = _rows(model, block), messages["m"]
    m_TM = to_tensor(table_TI)

    def output(rows_BI: Tensor, m_BM: Tensor, nbr_BK: Tensor, sim_BK: Tensor) -> tuple[Tensor, ...]:
        return then(model.convolve(layer, _widened(model, layer, rows_BI), m_BM, m_TM, nbr_BK, sim_BK))

    return in_chunks(output, own_NI, own_NM, local_NK, graph["sim_NK"])


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    """The parts one after another, without a copy where only the first has rows."""
    return parts[0] if all(len(part) == 0 for part in parts[1:]) else np.concatenate(parts)


def _score_edges(
    model: Lander, src: Block, halo: list[Block], dst: Loader, local_NK: np.ndarray, graph: Block
) -> Block:
    src_TG = to_tensor(_stacked([block["src"] for block in (src, *halo)]))

    def score(dst_BG: Tensor, nbr_BK: Tensor, sim_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p0_BK, p1_BK = model.probabilities(model.edge_logits(src_TG, dst_BG, nbr_BK))
        return p0_BK, p1_BK, model.density(p0_BK, p1_BK, sim_BK, nbr_BK)

    p0_NK, p1_NK, density_N = in_chunks(score, dst()["dst"], local_NK, graph["sim_NK"])
    return {"p0_NK": p0_NK, "p1_NK": p1_NK, "density_N": density_N}

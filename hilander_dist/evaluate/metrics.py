"""Pairwise and BCubed precision, recall and F, and NMI, from contingency counts (algorithm.md 2.7).

The pair counts are exact Python integers (1e9 items in one cluster are 1e18 pairs). Every score is a finite number:
where there is no pair to be wrong about (all clusters are singletons) the pairwise precision is 1, where no two items
share a label the pairwise recall is 1, and an F whose precision and recall are both 0 is 0. (The reference has NaN.)
NMI is normalised by the arithmetic mean of the entropies, which makes it equal to the V-measure.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from hilander_dist.errors import InputError
from hilander_dist.evaluate.contingency import Contingency, Int64, contingency, merge


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision, recall and their harmonic mean, each from 0 to 1."""

    precision: float
    recall: float
    f: float


@dataclass(frozen=True)
class Scores:
    """The agreement of one clustering with the labels."""

    pairwise: PrecisionRecall
    bcubed: PrecisionRecall
    nmi: float
    clusters: int
    """Clusters with at least one labelled item."""
    items: int
    """Labelled items."""


def scores(counts: Contingency) -> Scores:
    """Score a clustering by its contingency counts (at least one item)."""
    assert len(counts.count_E), "scores of nothing"
    count_E = counts.count_E
    cluster_of_E, cluster_size_C = _sizes(counts.cluster_E, count_E)
    label_of_E, label_size_G = _sizes(counts.label_E, count_E)
    items = int(count_E.sum())

    # Ordered pairs of two different items; the factor 2 against unordered ones cancels in every ratio.
    both = _sum_of_squares(count_E) - items
    same_cluster = _sum_of_squares(cluster_size_C) - items
    same_label = _sum_of_squares(label_size_G) - items
    pairwise = _precision_recall(both / same_cluster if same_cluster else 1.0, both / same_label if same_label else 1.0)

    share_of_cluster_E = count_E / cluster_size_C[cluster_of_E]
    share_of_label_E = count_E / label_size_G[label_of_E]
    bcubed = _precision_recall(_mean(share_of_cluster_E, count_E), _mean(share_of_label_E, count_E))

    entropy = (_entropy(cluster_size_C / items) + _entropy(label_size_G / items)) / 2
    information = _mean(np.log(share_of_cluster_E / (label_size_G[label_of_E] / items)), count_E)
    nmi = min(max(information / entropy, 0.0), 1.0) if entropy else 1.0
    return Scores(pairwise, bcubed, nmi, len(cluster_size_C), items)


def evaluate_tables(assignments: Iterable[pa.Table], labels: pa.Table) -> dict[str, Any]:
    """Score every level of a hierarchy and the final clusters.

    Rows are matched by id, exactly. Only rows whose id has a label that is not null are scored; the others are counted
    as ``unlabelled``. Memory is bounded by the labels and one table of assignments.

    Args:
        assignments: tables with columns ``id`` (string or integer), ``cluster_id`` and ``level_0`` ... ``level_L``
            (integers); other columns are ignored.
        labels: table with columns ``id`` (the same type) and ``label`` (string or integer, null where unknown).

    Returns:
        ``{"final": {"pairwise": {"precision", "recall", "f"}, "bcubed": {...}, "nmi", "clusters", "items",
        "unlabelled"}, "levels": [{"level", "pairwise", "bcubed", "nmi", "clusters"}, ...]}``, ready for JSON.

    Raises:
        InputError: a missing column, a column of another type, a null or repeated id, ids of the two sides that are of
            different types, or no row in common.
    """
    label_id, index, code_M = known_labels(labels, "labels")
    seen_M = np.zeros(len(code_M), bool)
    counts: dict[str, list[Contingency]] = {}
    rows = items = 0
    for table in assignments:
        assigned_id = _ids(table, "assignments")
        if assigned_id.type != label_id.type:
            raise InputError(
                f"assignments have {table['id'].type} ids and labels have {labels['id'].type} ids: "
                "write both as integers or both as strings"
            )
        if not counts:
            counts = {column: [] for column in ["cluster_id", *_level_columns(table)]}
        at_N = index.get_indexer(pd.Index(assigned_id.to_pandas()))
        is_known_N = at_N >= 0
        at_N = at_N[is_known_N]
        _mark_seen(seen_M, at_N, index)
        label_N = code_M[at_N]
        has_label_N = label_N >= 0
        for column, parts in counts.items():
            cluster_N = _cluster_ids(table, column)[is_known_N][has_label_N]
            _add(parts, contingency(cluster_N, label_N[has_label_N]))
        rows += len(table)
        items += int(has_label_N.sum())
    if not items:
        raise InputError(f"none of the {rows} ids of the assignments has a label: check that both are of the same data")
    final = merge(counts.pop("cluster_id"))
    levels = {int(name.removeprefix("level_")): merge(parts) for name, parts in counts.items()}
    return scores_json(final, levels, rows)


def scores_json(final: Contingency, levels: Mapping[int, Contingency], rows: int) -> dict[str, Any]:
    """Score the final clusters and those of each level, in the form that ``evaluate_tables`` returns.

    Args:
        final: counts of the final clusters.
        levels: counts by level.
        rows: number of samples, with and without a label.
    """
    scored = asdict(scores(final))
    out: dict[str, Any] = {"final": scored | {"unlabelled": rows - scored["items"]}, "levels": []}
    for index, counts in levels.items():
        level = asdict(scores(counts))
        del level["items"]
        out["levels"].append({"level": index} | level)
    return out


def format_scores(result: dict[str, Any]) -> str:
    """The result of ``evaluate_tables`` as a plain text table, one line per level and one for the final clusters."""
    lines = [
        f"{'':22}  {'pairwise':^23}  {'BCubed':^23}".rstrip(),
        f"{'':10}{'clusters':>12}" + f"  {'P':>7} {'R':>7} {'F':>7}" * 2 + f"  {'NMI':>7}",
    ]
    named = [(f"level {level['level']}", level) for level in result["levels"]]
    for name, entry in [*named, ("final", result["final"])]:
        line = f"{name:10}{entry['clusters']:>12,}"
        for kind in ("pairwise", "bcubed"):
            line += "  " + " ".join(f"{entry[kind][key]:>7.4f}" for key in ("precision", "recall", "f"))
        lines.append(f"{line}  {entry['nmi']:>7.4f}")
    final = result["final"]
    lines.append(f"{final['items']:,} labelled items scored, {final['unlabelled']:,} without a label left out")
    return "\n".join(lines)


def _sizes(key_E: Int64, count_E: Int64) -> tuple[Int64, Int64]:
    key_K, index_E = np.unique(key_E, return_inverse=True)
    size_K = np.zeros(len(key_K), np.int64)
    np.add.at(size_K, index_E, count_E)
    return index_E, size_K


def _sum_of_squares(count: Int64) -> int:
    # Few counts are distinct (at most sqrt(2 N) of them), so Python's integers cost nothing.
    value, times = np.unique(count, return_counts=True)
    return sum(v * v * t for v, t in zip(value.tolist(), times.tolist(), strict=True))


def _precision_recall(precision: float, recall: float) -> PrecisionRecall:
    total = precision + recall
    return PrecisionRecall(precision, recall, 2 * precision * recall / total if total else 0.0)


def _mean(value_E: np.ndarray, weight_E: Int64) -> float:
    return float((value_E * weight_E).sum() / weight_E.sum())


def _entropy(share: np.ndarray) -> float:
    return -float((share * np.log(share)).sum())


def _add(parts: list[Contingency], new: Contingency) -> None:
    # Merge only when the unmerged parts outgrow the merged one: linear time overall, at most twice its memory.
    parts.append(new)
    if sum(len(part.count_E) for part in parts[1:]) > len(parts[0].count_E):
        parts[:] = [merge(parts)]


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise InputError(f"{where}: no column {name!r}; the columns are {', '.join(table.column_names) or 'none'}")
    column = table[name]
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


class KnownLabels(NamedTuple):
    """Labels by id."""

    id_M: pa.Array
    """int64 or large_string, no two alike."""
    index_M: "pd.Index[Any]"
    """The same, built once, probed by every table. Values are exact, so a hash collision cannot join two ids."""
    code_M: Int64
    """0, 1, ... in the order of the labels' values, so that no sum depends on the order of rows; -1 for null."""


def known_labels(labels: pa.Table, where: str) -> KnownLabels:
    """Read a table of labels; ``where`` names it in messages.

    Raises:
        InputError: a column that is missing or of another type, a null or repeated id.
    """
    id_M = _ids(labels, where)
    index = pd.Index(id_M.to_pandas())
    _refuse_repeated(index[index.duplicated()], where)
    return KnownLabels(id_M, index, _label_codes(labels, where))


def _string_or_int64(table: pa.Table, name: str, where: str) -> pa.Array:
    column = _column(table, name, where)
    if pa.types.is_dictionary(column.type):  # pandas' categories.
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        # Widened before the chunks are joined: one string array holds at most 2 GiB.
        return column.cast(pa.large_string()).combine_chunks()
    if pa.types.is_integer(column.type):
        try:
            return column.cast(pa.int64()).combine_chunks()
        except pa.ArrowInvalid:
            raise InputError(f"{where}: column {name!r} has integers above 2^63 - 1: write them as strings") from None
    raise InputError(f"{where}: column {name!r} is of type {column.type}: it must hold strings or integers")


def _ids(table: pa.Table, where: str) -> pa.Array:
    column = _string_or_int64(table, "id", where)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise InputError(f"{where}: row {row} has no id: give every row one, or drop it")
    return column


def _label_codes(labels: pa.Table, where: str) -> Int64:
    encoded = _string_or_int64(labels, "label", where).dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.full(len(order) + 1, -1, np.int64)  # the last entry is for null
    rank[order] = np.arange(len(order))
    codes: Int64 = rank[encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy()]
    return codes


def _level_columns(table: pa.Table) -> list[str]:
    return sorted(
        (name for name in table.column_names if re.fullmatch(r"level_\d+", name)), key=lambda name: int(name[6:])
    )


def _cluster_ids(table: pa.Table, name: str) -> Int64:
    column = _column(table, name, "assignments")
    if not pa.types.is_integer(column.type) or column.null_count:
        raise InputError(f"assignments: column {name!r} must hold integers and no nulls (it is of type {column.type})")
    ids: Int64 = column.cast(pa.int64()).to_numpy()
    return ids


def _mark_seen(seen_M: np.ndarray, at_N: np.ndarray, index: "pd.Index[Any]") -> None:
    distinct, times = np.unique(at_N, return_counts=True)
    _refuse_repeated(index[distinct[seen_M[distinct] | (times > 1)]], "assignments")
    seen_M[distinct] = True


def _refuse_repeated(repeated: "pd.Index[Any]", where: str) -> None:
    if len(repeated):
        raise InputError(f"{where}: id {repeated.tolist()[0]!r} occurs more than once: keep one row of each id")

"""Metrics from contingency counts, and baselines to compare with."""

from hilander_dist.evaluate.contingency import Contingency, contingency, merge
from hilander_dist.evaluate.metrics import (
    KnownLabels,
    PrecisionRecall,
    Scores,
    evaluate_tables,
    format_scores,
    known_labels,
    scores,
    scores_json,
)

__all__ = [
    "Contingency",
    "KnownLabels",
    "PrecisionRecall",
    "Scores",
    "contingency",
    "evaluate_tables",
    "format_scores",
    "known_labels",
    "merge",
    "scores",
    "scores_json",
]

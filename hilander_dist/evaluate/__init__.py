"""Metrics from contingency counts, and baselines to compare with."""

from hilander_dist.evaluate.contingency import Contingency, contingency, merge
from hilander_dist.evaluate.metrics import PrecisionRecall, Scores, evaluate_tables, format_scores, scores, scores_json

__all__ = [
    "Contingency",
    "PrecisionRecall",
    "Scores",
    "contingency",
    "evaluate_tables",
    "format_scores",
    "merge",
    "scores",
    "scores_json",
]

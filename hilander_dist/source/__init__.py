"""The input before and while it is read: which files it means (``files.py``), their units and columns (``source.py``), and
the two formats (``parquet.py``, ``npy.py``)."""

from hilander_dist.source.files import Inputs, list_all, list_inputs, refuse_overlap
from hilander_dist.source.labels import read_labels
from hilander_dist.source.source import Layout, Source, Unit, open_source, read_unit

__all__ = [
    "Inputs",
    "Layout",
    "Source",
    "Unit",
    "list_all",
    "list_inputs",
    "open_source",
    "read_labels",
    "read_unit",
    "refuse_overlap",
]

"""Files below one URI, on a local disk or S3: ``storage.py`` is the way in, ``local.py`` and ``s3.py`` are its two backends."""

from hilander_dist.storage.backend import Entries, FileInfo, Listing
from hilander_dist.storage.storage import Storage, check_reachable, check_readable

__all__ = ["Entries", "FileInfo", "Listing", "Storage", "check_reachable", "check_readable"]

"""The exception tree: what can go wrong, and whose turn it is.

    HilanderError
    ├── UserError            the user can mend it: exit code 2, one line, no traceback
    │   ├── ConfigError      an option is unknown or has a bad value
    │   ├── InputError       an input file, column or row cannot be used
    │   ├── ModelError       a checkpoint cannot be used, or does not fit the data
    │   ├── OutputError      an output location is taken, or belongs to another run
    │   └── StorageError     a bucket, key or endpoint cannot be reached
    └── ClusterError         the Ray cluster cannot do it, or lost work for good: exit code 1

Every message is one line that names the file, row or key at fault and says what to do next.
A broken invariant of our own is an ``assert``, never one of these.
"""

import re


def redact(text: str) -> str:
    """The text without user and password in the URLs that it names."""
    return re.sub(r"(\w://)[^/@\s'\"]+@", r"\1***@", text)


class HilanderError(Exception):
    """Base of every error that hilander_dist raises on purpose."""

    exit_code = 1


class UserError(HilanderError):
    """Something that the user can mend."""

    exit_code = 2


class ConfigError(UserError):
    """An option is unknown or has a value that cannot be used."""


class InputError(UserError):
    """An input file, column or row cannot be used."""


class ModelError(UserError):
    """A checkpoint cannot be read, or does not fit the data."""


class OutputError(UserError):
    """An output location is taken, or belongs to a run with other inputs or options."""


class StorageError(UserError):
    """A path, bucket or endpoint cannot be read or written."""


class ClusterError(HilanderError):
    """The Ray cluster lacks what the run needs, or lost work that could not be recomputed."""

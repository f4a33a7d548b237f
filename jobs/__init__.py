"""Entry points for ``ray job submit``, one per job."""

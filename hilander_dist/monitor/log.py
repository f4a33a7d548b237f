"""The log: structured lines on stderr, so that stdout carries results alone."""

import logging
import sys

import structlog

from hilander_dist.errors import redact

logger: structlog.stdlib.BoundLogger = structlog.get_logger("hilander")
"""The package's logger; fields are keyword arguments."""


def configure_log(debug: bool = False) -> None:
    """Send log lines to stderr: coloured on a terminal, plain ``key=value`` elsewhere."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _redacted,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def _redacted(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: redact(value) if isinstance(value, str) else value for key, value in event.items()}

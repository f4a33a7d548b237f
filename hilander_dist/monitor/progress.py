"""Progress of a run: bars on a terminal, plain log lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from hilander_dist.monitor.log import logger

LOG_EVERY_S = 30.0
"""Without a terminal a running stage logs a line this often."""

LOG_FROM_S = 1.0
"""A stage logs its end if it took longer: small upper levels would drown the log."""


class Progress:
    """Shows stages of work, each with a count of tasks."""

    def __init__(self) -> None:
        self._bars = sys.stderr.isatty()
        self.seconds: dict[str, float] = {}
        """Of each stage that has ended; of one that came twice both together."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes the number of tasks just done."""
        start = time.monotonic()
        with self._shown(name, total, start) as advance:
            yield advance
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)

    @contextmanager
    def _shown(self, name: str, total: int, start: float) -> Iterator[Callable[[int], None]]:
        if self._bars:
            columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
                task = bars.add_task(name, total=total)
                yield lambda done: bars.advance(task, done)
            return
        last = start
        finished = 0

        def advance(done: int) -> None:
            nonlocal finished, last
            finished += done
            if time.monotonic() - last > LOG_EVERY_S:
                last = time.monotonic()
                logger.info("stage running", stage=name, tasks_done=finished, tasks=total)

        yield advance
        seconds = time.monotonic() - start
        if seconds > LOG_FROM_S:
            logger.info("stage done", stage=name, tasks=total, seconds=round(seconds, 1))

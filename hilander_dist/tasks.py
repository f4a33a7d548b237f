"""Pure functions as Ray tasks: one CPU and one thread each, outputs saved where a resumed run finds them.

Everything between ingest and output is ``Tasks.call(function, *arguments)``. The function knows nothing of Ray, so that
it is tested without it. Three rules hold for every task: it is a function of its arguments alone (a retry gives the same
bytes), it uses one thread of every numeric library (platform.md: a reused worker keeps its old pools), and with
``save`` its result is written to the run's storage before it is returned.
"""

import copy
import functools
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import ray

from hilander_dist.errors import ClusterError, HilanderError
from hilander_dist.monitor.progress import Progress
from hilander_dist.storage import Storage
from hilander_dist.versions import check_version, job_version, other_package

Block = dict[str, np.ndarray]
Loader = Callable[[], Block]
"""Reads a block from where it is stored, each time it is called: what need not stay in the object store."""

Ref = Any
"""A ray.ObjectRef: ray is not typed."""


@dataclass(frozen=True)
class Lazy:
    """Refs that a task receives as refs and fetches one at a time, so that its memory holds one block, not all."""

    refs: tuple[Ref, ...]

    def get(self, index: int) -> Block:
        """The block behind the ref; call inside a task only."""
        return cast("Block", ray.get(self.refs[index]))


class Tasks:
    """Submits tasks of one run and remembers which outputs an earlier, killed attempt has saved."""

    def __init__(self, store: Storage, saved: frozenset[str], progress: Progress) -> None:
        self.store = store
        self.saved = saved
        self.progress = progress
        self.memory = 0
        """Bytes that each task asks Ray for."""

    def asking(self, memory: int) -> Self:
        """The same, with tasks that ask Ray for so many bytes: no more of them run at once than a node has memory for."""
        other = copy.copy(self)
        other.memory = memory
        return other

    def offered(self) -> int:
        """The most memory that a task can ask for."""
        return largest_memory()

    def call(
        self, function: Callable[..., Any], *args: Any, returns: int = 1, save: str | None = None, gpus: int = 0
    ) -> Any:
        """Submit ``function(*args)``; refs among the arguments, also in lists, arrive as values.

        Args:
            function: a module-level function.
            *args: values, refs, or lists of refs.
            returns: number of values returned; with more than one the function returns a sequence of that length.
            save: path of the block in the run's storage; an earlier attempt's block there is loaded instead.
            gpus: GPUs that the task needs.

        Returns:
            One ref, or with ``returns > 1`` a list of refs.
        """
        if save is not None and save in self.saved:
            return self.load(save)
        shape = [len(arg) if isinstance(arg, list) else -1 for arg in args]
        flat = [item for arg in args for item in (arg if isinstance(arg, list) else [arg])]
        remote = _run.options(num_returns=returns, num_gpus=gpus, memory=self.memory, name=name_of(function))
        return remote.remote(job_version(), self.store, save, function, shape, *flat)

    def stream(self, function: Callable[[Any], Any], items: Sequence[Any], stage: str) -> Iterator[tuple[int, Any]]:
        """Run ``function`` on each of many items, by Ray Data, which has only some in flight at once.

        Args:
            function: picklable; its results are small.
            items: picklable.
            stage: for the progress.

        Yields:
            An item's index and its result, in the order in which they end.
        """
        if not items:
            return
        version = job_version()

        def run(row: dict[str, Any]) -> dict[str, Any]:
            pin_threads()
            try:
                check_version(version)
                outcome = function(pickle.loads(row["item"]))
            except HilanderError as error:
                outcome = error  # Ray Data would bring its traceback to the driver as text, without the error.
            return {"index": row["index"], "outcome": pickle.dumps(outcome)}

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"index": index, "item": pickle.dumps(item)} for index, item in enumerate(items)]
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(run)
        with self.progress.stage(stage, len(rows)) as advance, unwrapped_errors():
            for row in data.iter_rows():
                outcome = pickle.loads(row["outcome"])
                if isinstance(outcome, HilanderError):
                    raise outcome
                advance(1)
                yield row["index"], outcome

    def load(self, path: str) -> Ref:
        """A ref to a saved block."""
        return _load.remote(job_version(), self.store, path)

    def loader(self, path: str) -> Loader:
        """What reads a saved block."""
        return functools.partial(self.store.read_block, path)

    def get(self, refs: Any) -> Any:
        """Fetch small results to the driver; a task's error is raised as itself."""
        with unwrapped_errors():
            return ray.get(refs)

    def wait(self, refs: Sequence[Ref], stage: str) -> None:
        """Block until all are done, showing progress; a failure is raised."""
        with self.progress.stage(stage, len(refs)) as advance:
            pending = list(refs)
            while pending:
                done, pending = ray.wait(pending, num_returns=1, fetch_local=False)
                advance(len(done))
        # Fetching blocks only to see whether they failed would move them all to the driver: tasks beside them look.
        self.get([_probe.remote(ref) for ref in refs])


def largest_memory() -> int:
    """The most memory that a node of the Ray cluster with CPUs offers, in bytes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return int(max((resources.get("memory", 0) for resources in nodes if resources.get("CPU")), default=0))


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function, or of the one inside a partial: the task's name on the dashboard."""
    return str(getattr(function, "__name__", None) or cast("functools.partial[Any]", function).func.__name__)


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise an error of ours that came through Ray as itself, and Ray's own failures as ClusterError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        own = _own_error(error)
        if own is not None:
            raise own from error
        if isinstance(error, ray.exceptions.RayTaskError):
            other = other_package(error)
            if other is None:
                raise
            raise other from error
        raise ClusterError(f"the Ray cluster lost a task for good: {' '.join(str(error).split())[:500]}") from error


def pin_threads() -> None:
    """One thread for BLAS, OpenMP, torch and faiss in this process."""
    _pin_once()


@functools.cache
def _pin_once() -> None:
    import faiss
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    threadpoolctl.threadpool_limits(limits=1)


@ray.remote(num_cpus=1)
def _run(
    version: str | None, store: Storage, save: str | None, function: Callable[..., Any], shape: list[int], *flat: Any
) -> Any:
    check_version(version)
    pin_threads()
    items = iter(flat)
    args = [next(items) if size < 0 else [next(items) for _ in range(size)] for size in shape]
    result = function(*args)
    if save is not None:
        store.write_block(save, result)
    return result


@ray.remote(num_cpus=1)
def _load(version: str | None, store: Storage, path: str) -> Block:
    check_version(version)
    return store.read_block(path)


@ray.remote(num_cpus=1)
def _probe(block: Any) -> None:
    del block


def _own_error(error: BaseException | None, seen: int = 0) -> HilanderError | None:
    """The error of ours at the bottom of Ray's wrappings, if there is one.

    Ray's wrapping has the class of what it wraps besides its own, and a traceback for a text.
    """
    if error is None or seen > 20:
        return None
    if isinstance(error, HilanderError) and not isinstance(error, ray.exceptions.RayError):
        return error
    return _own_error(getattr(error, "cause", None), seen + 1) or _own_error(error.__cause__, seen + 1)

"""Tasks without Ray: each runs at once in this process. What clusters the held-out episodes of a training is so the code of the
jobs, on one shard; and tests run the level loop over any number of shards.

As on Ray, a ref is resolved where it stands as an argument or in a list among the arguments and nowhere else, and arrays
that a task receives are read-only.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hilander_dist.monitor.progress import Progress
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Lazy, Loader, Tasks, name_of


@dataclass(frozen=True)
class Value:
    """What stands for a ray.ObjectRef."""

    value: Any


class LocalTasks(Tasks):
    """Runs tasks where they are submitted. Without a store, blocks to be saved are kept in ``blocks``."""

    def __init__(self, store: Storage | None = None, saved: frozenset[str] = frozenset()) -> None:
        self.blocks: dict[str, Block] = {}
        super().__init__(store or _Memory(self.blocks), saved, Progress())
        self.calls: list[str] = []
        self.memory_offered = 2**40

    def call(
        self, function: Callable[..., Any], *args: Any, returns: int = 1, save: str | None = None, gpus: int = 0
    ) -> Any:
        """Run ``function(*args)`` at once; see ``Tasks.call``."""
        del gpus
        if save is not None and save in self.saved:
            return self.load(save)
        self.calls.append(name_of(function))
        result = _frozen(function(*(_resolved(arg) for arg in args)))
        if save is not None:
            self.blocks[save] = result
            self.store.write_block(save, result)
        if returns == 1:
            return Value(result)
        assert len(result) == returns, f"{function.__name__} returned {len(result)} values, not {returns}"
        return [Value(item) for item in result]

    def stream(self, function: Callable[[Any], Any], items: Sequence[Any], stage: str) -> Iterator[tuple[int, Any]]:
        """The results in the order of the items."""
        del stage
        for index, item in enumerate(items):
            yield index, function(item)

    def offered(self) -> int:
        """As ``memory_offered`` says."""
        return self.memory_offered

    def load(self, path: str) -> Any:
        """A saved block."""
        return Value(_frozen(self.store.read_block(path)))

    def loader(self, path: str) -> Loader:
        """What reads a saved block."""
        return functools.partial(self.blocks.__getitem__, path) if path in self.blocks else super().loader(path)

    def get(self, refs: Any) -> Any:
        """The values of refs."""
        return [ref.value for ref in refs] if isinstance(refs, list) else refs.value

    def wait(self, refs: Sequence[Any], stage: str) -> None:
        """Nothing is pending."""
        del stage
        assert all(isinstance(ref, Value) for ref in refs)


def held(blocks: Sequence[Block]) -> list[Loader]:
    """Loaders of blocks in memory."""
    return [functools.partial(dict, block) for block in blocks]


class _Memory(Storage):
    """Blocks in memory."""

    def __init__(self, blocks: dict[str, Block]) -> None:
        super().__init__("/nowhere")
        self._blocks = blocks

    def write_block(self, path: str, block: Block) -> None:
        self._blocks[path] = _frozen(block)

    def read_block(self, path: str = "") -> Block:
        return dict(self._blocks[path])

    def write_json(self, path: str, value: Any) -> None:
        del path, value


@dataclass(frozen=True)
class _LocalLazy(Lazy):
    def get(self, index: int) -> Block:
        """The block behind the ref."""
        block: Block = self.refs[index].value
        return block


def put(value: Any) -> Value:
    """The ref of a value."""
    return Value(_frozen(value))


def put_all(values: Sequence[Any]) -> list[Value]:
    """The refs of values."""
    return [put(value) for value in values]


def _resolved(arg: Any) -> Any:
    if isinstance(arg, Lazy):
        return _LocalLazy(arg.refs)
    return [_plain(item) for item in arg] if isinstance(arg, list) else _plain(arg)


def _plain(arg: Any) -> Any:
    if isinstance(arg, Value):
        return arg.value
    assert not (isinstance(arg, list) and any(isinstance(item, Value) for item in arg)), "a ref in a nested list"
    return arg


def _frozen(value: Any) -> Any:
    """The value with read-only views in the place of arrays."""
    if isinstance(value, np.ndarray):
        view = value.view()
        view.flags.writeable = False
        return view
    if type(value) is dict:
        return {name: _frozen(item) for name, item in value.items()}
    return type(value)(_frozen(item) for item in value) if type(value) in (list, tuple) else value

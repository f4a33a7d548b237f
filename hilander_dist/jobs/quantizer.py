"""The partition into cells of an earlier run, and this one's for a later run."""

from typing import Any

import numpy as np

from hilander_dist.cluster.whitening import MAP
from hilander_dist.config import Config
from hilander_dist.errors import InputError
from hilander_dist.knn.layout import Space, load_quantizer, load_space, quantizer_path, save_quantizer
from hilander_dist.lander.checkpoint import AnyLander
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.run import Run
from hilander_dist.storage import Storage

QUANTIZER = "quantizer.safetensors"


def frozen_quantizer(config: Config, dim: int, model: AnyLander | None) -> Storage | None:
    """The file of the quantizer that the configuration names: itself, or in an earlier run's output directory.

    Raises:
        InputError: it cannot be used, see ``layout.load_quantizer``, or is of other vectors than this run's.
        StorageError: it is not there.
    """
    if config.quantizer is None:
        return None
    file = Storage(config.quantizer)
    if not config.quantizer.endswith(".safetensors"):
        file = file.child(QUANTIZER)
    load_quantizer(file, dim)
    _check_space(file, model)
    return file


def keep_quantizer(run: Run, whitening: dict[str, Any] | None = None) -> None:
    """Put level 0's quantizer among the results, with what became of whitening (as of ``prepare_parts``) and its map: a
    later run can use both again when ``_work/`` is gone."""
    block = run.work.read_block(quantizer_path("level-0"))
    kept = whitening is not None and whitening["kept"]
    space: Space = "plain" if whitening is None else "whitened" if kept else "declined"
    map_DD = run.work.read_block(MAP)["map_DD"] if kept else None
    save_quantizer(run.output.child(QUANTIZER), block, space, map_DD)


def _check_space(file: Storage, model: AnyLander | None) -> None:
    space, block = load_space(file)
    if not isinstance(model, RelationalLander) or not (model.dim or model.inference.whiten):
        if space == "whitened":
            raise InputError(
                f"{file.uri}: its cells are of whitened vectors, and this run takes vectors as they are: use the quantizer "
                "of `hilander graph` or of a run with a model that does not whiten"
            )
    elif model.dim is not None:
        if space != "whitened" or not np.array_equal(block["map_DD"], model.map_DD.numpy()):
            raise InputError(
                f"{file.uri}: its cells are not of vectors that this model whitened: use the quantizer of a run with it"
            )
    elif space == "plain":
        raise InputError(
            f"{file.uri}: its cells are of vectors as they are, and this model whitens them where that pays: use the "
            "quantizer of a run with it"
        )

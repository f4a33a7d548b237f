"""Checkpoints: our own format, and the official code's ``.pth`` state dicts (algorithm.md 1.12).

Ours is safetensors with one header entry, ``hilander``: JSON with the schema version, our version, the embedding's
dimension (null for a relational model that takes any), the kind and shape of the model, of a relational one its Inference, and what
training wrote.
Loading one runs no code. (Several header entries would come in a random order: equal models would give different bytes.)
An official state dict, of a raw model, has no configuration: the flags must fit it, and a message names those that do.
"""

import hashlib
import io
import json
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from hilander_dist import __version__
from hilander_dist.config import ModelConfig, RawModel, RelationalModel
from hilander_dist.errors import ModelError
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.model import Lander
from hilander_dist.lander.relational import RelationalLander

AnyLander = Lander | RelationalLander

_SCHEMA = 2
_SCHEMA_OF_HEADS = 1
"""Of relational checkpoints whose clusters were made by heads that are gone."""

_GCN_KEY = "conv.0.gcn_layer.mlp.weight"
_GAT_KEY = "conv.0.gcn_layer.fc.weight"


def save_checkpoint(model: AnyLander, metadata: dict[str, str]) -> bytes:
    """The model as bytes in our own format. Equal weights, configuration and metadata give equal bytes."""
    header = {
        "schema": _SCHEMA,
        "hilander_version": __version__,
        "dim": model.dim,
        "model": model.config.model_dump(mode="json"),
        "inference": model.inference.model_dump(mode="json") if isinstance(model, RelationalLander) else None,
        "training": metadata,
    }
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return safetensors.torch.save(state, {"hilander": json.dumps(header, sort_keys=True)})


def load_checkpoint(data: bytes, name: str, config: ModelConfig) -> AnyLander:
    """Rebuild a model (float32, on the CPU) from a checkpoint of either kind.

    Args:
        data: the file's content.
        name: of the file, for messages.
        config: the shape of an official state dict. Of a raw checkpoint of our own only ``backend`` is taken from it, of a
            relational one nothing.

    Raises:
        ModelError: the file is of neither kind, or its weights do not fit the flags, or are not finite.
    """
    inference, dim = None, None
    if data[8:9] == b"{":
        state, dim, config, inference = _read_own(data, name, config)
    else:
        state = _read_official(data, name)
        dim, config = _check_flags(state, name, config)
    with torch.device("meta"):
        if isinstance(config, RelationalModel):
            model: AnyLander = RelationalLander(config, dim)
            model.inference = inference or Inference()
        else:
            assert dim is not None
            model = Lander(dim, config)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    bad = _first_misfit(expected, state)
    if bad is not None:
        raise ModelError(
            f"{name}: {bad}: the file is damaged, of another version, or no LANDER checkpoint; use another one"
        )
    for key, value in state.items():
        if not value.isfinite().all():
            raise ModelError(f"{name}: {key} has values that are not finite; use another checkpoint")
    model.load_state_dict({key: value.float().clone() for key, value in state.items()}, assign=True)
    return model


def model_hash(model: AnyLander) -> str:
    """SHA-256 (hex) over the names, shapes and values of all weights, in order of their names."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_own(
    data: bytes, name: str, config: ModelConfig
) -> tuple[dict[str, Tensor], int | None, ModelConfig, Inference | None]:
    try:
        state = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError):
        raise ModelError(f"{name}: damaged safetensors file; use another copy of it") from None
    if "hilander" not in entries:
        raise ModelError(f"{name}: safetensors without a `hilander` header entry; use a checkpoint of `hilander train`")
    try:
        header = json.loads(entries["hilander"])
        if header["schema"] > _SCHEMA:
            version = header["hilander_version"]
            raise ModelError(f"{name}: written by hilander_dist {version}, this is {__version__}; install that version")
        shape = _own_shape(header["model"], config)
        dim = header["dim"] if isinstance(shape, RelationalModel) and header["dim"] is None else int(header["dim"])
        if dim is not None and dim < 1:
            raise ValueError(dim)
        if isinstance(shape, RelationalModel) and header["schema"] == _SCHEMA_OF_HEADS:
            raise ModelError(
                f"{name}: a relational checkpoint of an older hilander_dist, whose way of clustering is gone: train it anew"
            )
        found = header.get("inference")
        return state, dim, shape, found and Inference.model_validate(found)
    except (ValueError, KeyError, TypeError):  # A ValidationError is a ValueError.
        raise ModelError(f"{name}: the `hilander` header entry is damaged; use another copy of the file") from None


def _own_shape(header: dict[str, Any], config: ModelConfig) -> ModelConfig:
    if header["features"] == "relational":
        return RelationalModel.model_validate({key: header[key] for key in RelationalModel.model_fields})
    backend = config.backend if isinstance(config, RawModel) else "torch"
    return RawModel.model_validate({**header, "backend": backend})


def _read_official(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # A file that is no checkpoint, or a hostile one, can raise anything here.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{name}: neither a hilander checkpoint nor a .pth state dict that loads without running code"
            f" ({reason[0]}); save it again with torch.save(model.state_dict(), file)"
        ) from None
    if not isinstance(state, dict) or not all(map(_is_weight, state.values())):
        raise ModelError(
            f"{name}: not a state dict of weights; save it again with torch.save(model.state_dict(), file)"
        )
    return {str(key): value for key, value in state.items()}


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


def _check_flags(state: dict[str, Tensor], name: str, config: ModelConfig) -> tuple[int, RawModel]:
    """The embedding's dimension and the shape. Raises ModelError where other flags would fit the state dict, and names them."""
    first = state.get(_GCN_KEY, state.get(_GAT_KEY))
    if first is None or first.ndim != 2:
        raise ModelError(f"{name}: no key {_GCN_KEY} or {_GAT_KEY} with 2 axes: no LANDER checkpoint; use another one")
    found = _flags_of(state)
    if not isinstance(config, RawModel):
        usual = RawModel()
        needed = {"features": "raw"} | {key: value for key, value in found.items() if value != getattr(usual, key)}
        raise ModelError(f"{name}: an official state dict is of a raw model: try {_as_flags(needed)}")
    width = first.shape[1] // 2 if _GCN_KEY in state else first.shape[1]
    dim = width // 2 if config.uses_cluster_features else width
    wrong = {key: value for key, value in found.items() if value != getattr(config, key)}
    if wrong:
        with torch.device("meta"):
            expected = {key: tuple(value.shape) for key, value in Lander(dim, config).state_dict().items()}
        raise ModelError(f"{name}: {_first_misfit(expected, state)}: try {_as_flags(wrong)}")
    if config.uses_cluster_features and width % 2:
        raise ModelError(
            f"{name}: {width} inputs are not [x ; c] of one dimension, key shape {tuple(first.shape)}:"
            " try --set model.cluster_features=false"
        )
    return dim, config


def _as_flags(options: dict[str, str | int]) -> str:
    return " ".join(f"--set model.{key}={value}" for key, value in options.items())


def _flags_of(state: dict[str, Tensor]) -> dict[str, str | int]:
    """The options that the keys and shapes show, those with possible values."""
    flags: dict[str, str | int] = {"encoder": "gcn" if _GCN_KEY in state else "gat"}
    flags["num_conv"] = len({key.split(".")[1] for key in state if key.startswith("conv.") and key.count(".") > 1})
    if "src_mlp.weight" in state and state["src_mlp.weight"].ndim == 2:
        flags["hidden"] = 2 * state["src_mlp.weight"].shape[0]
    attention = state.get("conv.0.gcn_layer.attn_l")
    if attention is not None and attention.ndim == 3:
        flags["heads"] = attention.shape[1]
    try:
        RawModel.model_validate(flags)
    except ValidationError:
        return {"encoder": flags["encoder"]}
    return flags


def _first_misfit(expected: dict[str, tuple[int, ...]], state: dict[str, Tensor]) -> str | None:
    """The first key whose shape is not the expected one, with both; a missing or unknown key counts."""
    for key in [*expected, *sorted(state.keys() - expected.keys())]:
        if key not in state:
            return f"key {key} is missing, expected shape {expected[key]}"
        if key not in expected:
            return f"unexpected key {key}, shape {tuple(state[key].shape)}"
        if tuple(state[key].shape) != expected[key]:
            return f"key {key} has shape {tuple(state[key].shape)}, expected {expected[key]}"
    return None

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist import __version__
from hilander_dist.config import RawModel, RelationalModel
from hilander_dist.errors import ModelError
from hilander_dist.lander.checkpoint import AnyLander, load_checkpoint, model_hash, save_checkpoint
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.model import Lander
from hilander_dist.lander.relational import RelationalLander

OPTIONS: list[dict[str, Any]] = [
    {"hidden": 8},
    {"hidden": 8, "num_conv": 4, "cluster_features": False},
    {"hidden": 8, "encoder": "gat", "heads": 3, "num_conv": 2},
    {"hidden": 8, "encoder": "gat", "cluster_features": True},
]


def make_model(dim: int = 5, **options: Any) -> Lander:
    torch.manual_seed(0)
    return Lander(dim, RawModel.model_validate({"hidden": 8, **options}))


def make_relational(**inference: Any) -> RelationalLander:
    torch.manual_seed(0)
    model = RelationalLander(RelationalModel(hidden=8))
    model.inference = Inference(**inference)
    return model


def official(model: Lander, **changes: Any) -> bytes:
    """The model as the official code writes it, with some entries changed (None removes one)."""
    state = {**model.state_dict(), **{key.replace("__", "."): value for key, value in changes.items()}}
    buffer = io.BytesIO()
    torch.save({key: value for key, value in state.items() if value is not None}, buffer)
    return buffer.getvalue()


def message(data: bytes, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_checkpoint(data, "model.pth", RawModel.model_validate({"hidden": 8, **options}))
    text = str(caught.value)
    assert text.startswith("model.pth: ")
    assert "\n" not in text
    return text


def assert_same(one: AnyLander, other: Lander) -> None:
    assert isinstance(one, Lander)
    assert one.dim == other.dim
    state = other.state_dict()
    assert one.state_dict().keys() == state.keys()
    for key, value in one.state_dict().items():
        assert value.equal(state[key])


@pytest.mark.parametrize("options", OPTIONS)
class TestRoundTrip:
    def test_own_format_carries_its_configuration(self, options: dict[str, Any]) -> None:
        model = make_model(**options)
        loaded = load_checkpoint(save_checkpoint(model, {"epochs": "3"}), "model", RelationalModel())
        assert_same(loaded, model)
        assert loaded.config == model.config
        assert all(parameter.requires_grad for parameter in loaded.parameters())

    def test_official_state_dict_with_its_flags(self, options: dict[str, Any]) -> None:
        model = make_model(**options)
        assert_same(load_checkpoint(official(model), "model", model.config), model)

    def test_official_state_dict_in_the_old_file_format(self, options: dict[str, Any]) -> None:
        model, buffer = make_model(**options), io.BytesIO()
        torch.save(model.state_dict(), buffer, _use_new_zipfile_serialization=False)
        assert_same(load_checkpoint(buffer.getvalue(), "model", model.config), model)

    def test_hash_depends_on_the_weights_only(self, options: dict[str, Any]) -> None:
        model = make_model(**options)
        loaded = load_checkpoint(official(model), "model", model.config)
        assert model_hash(loaded) == model_hash(model)
        with torch.no_grad():
            next(loaded.parameters())[0, 0] += 1e-6
        assert model_hash(loaded) != model_hash(model)


class TestOwnFormat:
    def test_header(self) -> None:
        data = save_checkpoint(make_model(), {"epochs": "3"})
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        assert json.loads(header["hilander"]) == {
            "schema": 2,
            "hilander_version": __version__,
            "dim": 5,
            "model": RawModel(hidden=8).model_dump(),
            "inference": None,
            "training": {"epochs": "3"},
        }

    def test_equal_models_give_equal_bytes(self) -> None:
        metadata = {str(number): "x" for number in range(20)}
        assert len({save_checkpoint(make_model(), metadata) for _ in range(5)}) == 1
        assert len({save_checkpoint(make_relational(shift=0.5, whiten=True), metadata) for _ in range(5)}) == 1
        assert len({save_checkpoint(make_relational(shift=shift), {}) for shift in (None, 0.0, 0.5)}) == 3

    def test_the_backend_is_the_callers(self) -> None:
        data = save_checkpoint(make_model(), {})
        loaded = load_checkpoint(data, "model", RawModel(backend="dgl"))
        assert loaded.config == RawModel(hidden=8, backend="dgl")
        again = load_checkpoint(save_checkpoint(loaded, {}), "model", RelationalModel())
        assert again.config == RawModel(hidden=8)

    def test_a_relational_model_is_one_whatever_is_asked_for(self) -> None:
        model = RelationalLander(RelationalModel(hidden=8, num_conv=1))
        for asked in (RelationalModel(), RawModel(backend="dgl")):
            loaded = load_checkpoint(save_checkpoint(model, {}), "model", asked)
            assert isinstance(loaded, RelationalLander)
            assert loaded.config == model.config

    @given(
        shift=st.none() | st.floats(-9, 9),
        base_rate=st.floats(0.001, 0.999),
        k=st.integers(2, 200),
        whiten=st.booleans(),
        closed_share=st.floats(0.5, 1, exclude_min=True),
        shift_step=st.floats(0.01, 2),
    )
    @settings(max_examples=25, deadline=None)
    def test_a_relational_model_keeps_its_weights_its_map_and_what_decides_the_clusters(self, **numbers: Any) -> None:
        model = make_relational(**numbers)
        model.set_map(torch.arange(9.0).reshape(3, 3))
        loaded = load_checkpoint(save_checkpoint(model, {}), "model", RawModel())
        assert isinstance(loaded, RelationalLander)
        assert loaded.inference == model.inference == Inference(**numbers)
        assert loaded.dim == 3
        state = model.state_dict()
        assert loaded.state_dict().keys() == state.keys()
        assert all(value.equal(state[key]) for key, value in loaded.state_dict().items())

    def test_what_decides_the_clusters_is_no_part_of_the_hash_of_the_weights(self) -> None:
        assert model_hash(make_relational(shift=0.5)) == model_hash(make_relational())

    def test_a_relational_checkpoint_from_before_the_level_path_is_to_be_trained_anew(self) -> None:
        model = make_relational()
        header = {"schema": 1, "dim": None, "model": model.config.model_dump(), "calibration": {"tau": 0.4}}
        data = safetensors.torch.save(model.state_dict(), {"hilander": json.dumps(header)})
        assert message(data) == (
            "model.pth: a relational checkpoint of an older hilander_dist, whose way of clustering is gone: train it anew"
        )

    def test_a_raw_checkpoint_from_before_the_level_path_is_read(self) -> None:
        model = make_model()
        header = {"schema": 1, "dim": 5, "model": model.config.model_dump(), "calibration": None}
        data = safetensors.torch.save(model.state_dict(), {"hilander": json.dumps(header)})
        assert_same(load_checkpoint(data, "model", RelationalModel()), model)

    @pytest.mark.parametrize("inference", [{"shift": "far"}, {"k": 1}, {"tau": 0.5}, 3])
    def test_damaged_numbers_of_what_decides_the_clusters(self, inference: Any) -> None:
        model = make_relational()
        header = {"schema": 2, "dim": None, "model": model.config.model_dump(), "inference": inference}
        data = safetensors.torch.save(model.state_dict(), {"hilander": json.dumps(header)})
        assert "header entry is damaged" in message(data)

    def test_without_our_header(self) -> None:
        data = safetensors.torch.save(make_model().state_dict())
        assert "safetensors without a `hilander` header entry" in message(data)

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "[]",
            "{}",
            '{"schema": "1"}',
            '{"schema": 1, "dim": 5, "model": {}}',
            '{"schema": 1, "dim": 0, "model": {"features": "raw"}}',
            '{"schema": 1, "dim": 5, "model": {"features": "raw", "a": 1}}',
            '{"schema": 1, "dim": null, "model": {"features": "raw"}}',
            '{"schema": 1, "dim": null, "model": {"features": "relational"}}',
            '{"schema": 1, "dim": 5, "model": {"features": "other"}}',
        ],
    )
    def test_a_damaged_header(self, header: str) -> None:
        assert "header entry is damaged" in message(
            safetensors.torch.save(make_model().state_dict(), {"hilander": header})
        )

    def test_a_newer_schema(self) -> None:
        header = json.dumps({"schema": 3, "hilander_version": "9.1"})
        data = safetensors.torch.save(make_model().state_dict(), {"hilander": header})
        assert "written by hilander_dist 9.1" in message(data)

    def test_weights_that_do_not_fit_the_header(self) -> None:
        model = make_model()
        model.dim = 6
        text = message(save_checkpoint(model, {}))
        assert "key conv.0.gcn_layer.mlp.weight has shape (8, 20), expected (8, 24)" in text

    def test_a_truncated_file(self) -> None:
        assert "damaged safetensors file" in message(save_checkpoint(make_model(), {})[:-1])


class TestOfficialFormat:
    @pytest.mark.parametrize(
        ("file", "flags", "expected"),
        [
            (
                {"encoder": "gat"},
                {},
                "key conv.0.gcn_layer.mlp.weight is missing, expected shape (8, 8): try --set model.encoder=gat",
            ),
            (
                {},
                {"encoder": "gat"},
                "key conv.0.bias is missing, expected shape (1, 8): try --set model.encoder=gcn",
            ),
            (
                {"hidden": 12},
                {},
                "key conv.0.gcn_layer.mlp.weight has shape (12, 20), expected (8, 20): try --set model.hidden=12",
            ),
            (
                {"num_conv": 2},
                {},
                "unexpected key conv.1.gcn_layer.mlp.bias, shape (8,): try --set model.num_conv=2",
            ),
            (
                {},
                {"num_conv": 2},
                "key conv.1.gcn_layer.mlp.weight is missing, expected shape (8, 16): try --set model.num_conv=1",
            ),
            (
                {"encoder": "gat", "heads": 2},
                {"encoder": "gat"},
                "key conv.0.bias has shape (2, 8), expected (1, 8): try --set model.heads=2",
            ),
            (
                {"encoder": "gat", "heads": 2, "num_conv": 2},
                {"hidden": 4},
                "try --set model.encoder=gat --set model.num_conv=2 --set model.hidden=8 --set model.heads=2",
            ),
            (
                {"cluster_features": False},
                {},
                "5 inputs are not [x ; c] of one dimension, key shape (8, 10): try --set model.cluster_features=false",
            ),
        ],
    )
    def test_flags_that_do_not_fit(self, file: dict[str, Any], flags: dict[str, Any], expected: str) -> None:
        assert message(official(make_model(**file)), **flags).endswith(expected)

    @pytest.mark.parametrize(
        ("file", "flags"),
        [
            ({"hidden": 512}, "--set model.features=raw"),
            ({"hidden": 8}, "--set model.features=raw --set model.hidden=8"),
            (
                {"hidden": 8, "encoder": "gat", "heads": 2},
                "--set model.features=raw --set model.encoder=gat --set model.hidden=8 --set model.heads=2",
            ),
        ],
    )
    def test_a_relational_model_is_asked_for(self, file: dict[str, Any], flags: str) -> None:
        with pytest.raises(ModelError) as caught:
            load_checkpoint(official(make_model(**file)), "model.pth", RelationalModel())
        assert str(caught.value) == f"model.pth: an official state dict is of a raw model: try {flags}"

    def test_a_missing_key(self) -> None:
        text = message(official(make_model(), dst_mlp__bias=None))
        assert "key dst_mlp.bias is missing, expected shape (4,): the file is damaged" in text

    def test_an_unknown_key(self) -> None:
        assert "unexpected key extra, shape (2,)" in message(official(make_model(), extra=torch.zeros(2)))

    def test_a_wrong_shape(self) -> None:
        text = message(official(make_model(), classifier_conn__0__weight=torch.zeros(1)))
        assert "key classifier_conn.0.weight has shape (1,), expected (4,)" in text

    @pytest.mark.parametrize("shape", [(), (3,), (0, 8), (2, 3, 4)])
    def test_strange_shapes(self, shape: tuple[int, ...]) -> None:
        for key in ("conv__0__gcn_layer__mlp__weight", "src_mlp__weight"):
            assert message(official(make_model(), **{key: torch.zeros(shape)}))

    def test_another_networks_state_dict(self) -> None:
        assert "no LANDER checkpoint" in message(official(make_model(), conv__0__gcn_layer__mlp__weight=None))

    def test_values_that_are_not_finite(self) -> None:
        text = message(official(make_model(), src_mlp__bias=torch.tensor([0, 1, float("nan"), 2])))
        assert "src_mlp.bias has values that are not finite" in text

    def test_half_precision_is_read_as_float32(self) -> None:
        model = make_model()
        loaded = load_checkpoint(official(model.half()), "model", RawModel(hidden=8))
        assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}

    @pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": 1}}, {"a": torch.zeros(2, dtype=torch.int64)}])
    def test_something_else_saved_by_torch(self, content: Any) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        assert "not a state dict of weights" in message(buffer.getvalue())


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


class TestHostileFiles:
    @pytest.mark.parametrize("container", ["torch", "pickle"])
    def test_a_pickle_with_code_is_refused_unrun(self, container: str, tmp_path: Path) -> None:
        buffer, marker = io.BytesIO(), tmp_path / "ran"
        if container == "torch":
            torch.save({"a": _Evil(marker)}, buffer)
        else:
            pickle.dump(_Evil(marker), buffer)
        assert "without running code" in message(buffer.getvalue())
        assert not marker.exists()

    @settings(max_examples=100, deadline=None)
    @given(data=st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        assert message(data)

    @settings(max_examples=100, deadline=None)
    @given(at=st.integers(0, 10_000), value=st.integers(0, 255), own=st.booleans())
    def test_a_flipped_byte_is_refused_or_harmless(self, at: int, value: int, own: bool) -> None:
        data = bytearray(save_checkpoint(make_model(), {}) if own else official(make_model()))
        data[at % len(data)] = value
        try:
            loaded = load_checkpoint(bytes(data), "model.pth", RawModel(hidden=8))
        except ModelError as error:
            refused = str(error)
        else:
            refused = "model.pth: "
            assert all(value.isfinite().all() for value in loaded.state_dict().values())
        assert refused.startswith("model.pth: ")

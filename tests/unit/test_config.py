import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.config import (
    Config,
    RawModel,
    RawTrain,
    RelationalModel,
    RelationalTrain,
    config_schema,
    config_yaml,
    load_config,
    parse_config,
)
from hilander_dist.errors import ConfigError

RAW = {"features": "raw"}


def written(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "options.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_the_defaults_need_no_file() -> None:
    assert load_config() == Config()
    assert load_config().k == 10


@pytest.mark.parametrize("given", [{}, {"model": {"num_conv": 2}}, {"model": {"features": "relational"}, "train": {}}])
def test_a_model_is_relational_by_default(given: dict[str, Any]) -> None:
    config = parse_config(given)
    assert (config.model, config.train) == (RelationalModel(), RelationalTrain())
    assert (config.model.hidden, config.model.num_conv) == (32, 2)
    assert (config.train.epochs, config.train.lr, config.train.weight_decay) == (8, 0.003, 0.001)
    assert config == Config()


def test_a_raw_model_has_the_defaults_of_its_kind() -> None:
    config = load_config(overrides=["model.features=raw"])
    assert (config.model, config.train) == (RawModel(), RawTrain())
    assert (config.model.hidden, config.model.num_conv) == (512, 1)
    assert (config.train.epochs, config.train.lr, config.train.weight_decay) == (250, 0.01, 1e-5)
    assert config == Config(model=RawModel()) == Config(model=RawModel(), train=RawTrain())


def test_nothing_counts_as_set_that_nobody_set() -> None:
    config = parse_config({"model": {"features": "relational"}, "train": {"epochs": 3}})
    assert config.model.model_fields_set == {"features"}
    assert config.train.model_fields_set == {"epochs"}
    assert Config().model.model_fields_set == set()


@pytest.mark.parametrize(
    ("kind", "other", "keys"),
    [
        (
            "relational",
            "raw",
            (
                *("model.encoder", "model.cluster_features", "model.heads", "model.backend"),
                *("train.level_k", "train.level_counts", "train.merge_across_labels"),
                *("train.batch_size", "train.momentum", "train.balance"),
            ),
        ),
        ("raw", "relational", ("train.episodes", "train.holdout", "train.patience")),
    ],
)
def test_an_option_of_the_other_kind_of_model_is_refused(kind: str, other: str, keys: tuple[str, ...]) -> None:
    for key in keys:
        with pytest.raises(ConfigError) as caught:
            load_config(overrides=[f"model.features={kind}", f"{key}=1"])
        assert str(caught.value) == f"{key}: only a {other} model has it: leave it out, or set model.features={other}"
        if kind == "relational":  # Also where nobody says so.
            with pytest.raises(ConfigError, match="only a raw model has it"):
                load_config(overrides=[f"{key}=1"])


def test_training_follows_the_model() -> None:
    for model, train in ((RawModel(), RelationalTrain()), (RelationalModel(), RawTrain())):
        with pytest.raises(ValueError, match=f"{type(train).__name__} is not of a {model.features} model"):
            Config(model=model, train=train)


def test_later_sources_win(tmp_path: Path) -> None:
    file = written(tmp_path, "k: 5\ntau: 0.5\nseed: 5\nmodel: {features: raw, hidden: 64, encoder: gat}\n")
    config = load_config(file, ["tau=0.6", "seed=6", "model.hidden=32"], {"seed": 7, "max_levels": None})
    assert (config.k, config.tau, config.seed) == (5, 0.6, 7)
    assert config.model == RawModel(encoder="gat", hidden=32)
    assert config.max_levels == Config().max_levels


def test_a_flag_of_a_nested_option_is_written_with_dots() -> None:
    assert load_config(flags={"train.epochs": 3}).train.epochs == 3


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == Config()


def test_the_yaml_of_a_configuration_reads_back_as_the_same(tmp_path: Path) -> None:
    raw = ["model.features=raw", "train.level_k=[4, 3]", "train.level_counts=[1, 2]", "input.id_column=näme"]
    relational = ["model.hidden=8", "train.episodes=4", "train.lr=0.1"]
    for config in (load_config(overrides=raw), load_config(overrides=relational), Config(model=RawModel())):
        assert load_config(written(tmp_path, config_yaml(config))) == config


@settings(max_examples=15)
@given(
    k=st.integers(2, 500),
    tau=st.floats(0, 1),
    shards=st.none() | st.integers(1, 10**6),
    name=st.text(min_size=1),
    group=st.fixed_dictionaries({"features": st.just("raw"), "cluster_features": st.none() | st.booleans()})
    | st.fixed_dictionaries({"hidden": st.integers(1, 100).map(lambda half: 2 * half)}),
)
def test_every_configuration_survives_yaml(
    k: int, tau: float, shards: int | None, name: str, group: dict[str, Any]
) -> None:
    config = parse_config({"k": k, "tau": tau, "num_shards": shards, "input": {"id_column": name}, "model": group})
    assert parse_config(yaml.safe_load(config_yaml(config))) == config


@pytest.mark.parametrize(("model", "train"), [(RawModel(), RawTrain()), (RelationalModel(), RelationalTrain())])
def test_the_yaml_shows_every_key_of_its_kind_of_model(
    model: RawModel | RelationalModel, train: RawTrain | RelationalTrain
) -> None:
    shown = yaml.safe_load(config_yaml(Config(model=model)).replace("# ", ""))
    assert shown.keys() == Config.model_fields.keys()
    assert shown["model"].keys() == type(model).model_fields.keys()
    assert shown["train"].keys() == type(train).model_fields.keys()


def test_what_nobody_set_is_a_comment_so_that_others_may_bring_it() -> None:
    text = config_yaml(load_config(overrides=["max_levels=3", "model.hidden=8"]))
    assert parse_config(yaml.safe_load(text)).model_fields_set == {"max_levels", "model"}
    dumped = yaml.safe_load(text)
    assert parse_config({**dumped, "model": {"features": "raw"}}).train.epochs == 250
    raw = yaml.safe_load(config_yaml(load_config(overrides=["model.features=raw", "train.lr=0.1"])))
    assert raw == {"model": {"features": "raw"}, "train": {"lr": 0.1}}
    assert yaml.safe_load(config_yaml(Config())) is None


def test_the_schema_describes_every_option() -> None:
    schema = json.loads(config_schema())
    groups = [schema, *schema["$defs"].values()]
    kinds = {"RawModel", "RawTrain", "RelationalModel", "RelationalTrain"}
    assert schema["$defs"].keys() == {*kinds, "InputConfig", "ClusterConfig"}
    for group in ("model", "train"):
        assert len(schema["properties"][group]["anyOf"]) == 2
    for group in groups:
        assert all("description" in entry or "$ref" in entry for entry in group["properties"].values())
    assert schema["properties"]["tau"]["maximum"] == 1


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("tua", "tau"),
        ("epochs", "train.epochs"),
        ("model.hiden", "model.hidden"),
        ("train.lr_rate", "train.lr"),
        ("model.encode", "model.encoder"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest_known_one(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown option {key}: did you mean {nearest}"):
        load_config(overrides=[f"{key}=1"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"k": 1}, "k: Input should be greater than or equal to 2 (got 1)"),
        ({"k": "many"}, "k: Input should be a valid integer"),
        ({"tau": 1.5}, "tau: "),
        ({"tau": float("nan")}, "tau: "),
        ({"compat": "exact"}, "compat: "),
        ({"model": {"hidden": 3}}, "model.hidden: "),
        ({"model": {"features": "cnn"}}, "model.features: 'cnn' is no kind of model: set one of relational, raw"),
        ({"model": {"features": ["raw"]}}, "model.features: ['raw'] is no kind of model"),
        ({"model": {**RAW, "encoder": "cnn"}}, "model.encoder: "),
        ({"model": RAW, "train": {"level_k": [10], "level_counts": [1, 2]}}, "one entry each per hierarchy"),
        ({"model": RAW, "train": {"level_k": [], "level_counts": []}}, "one entry each per hierarchy"),
        ({"model": RAW, "train": {"level_k": [1], "level_counts": [1]}}, "train.level_k must be at least 2"),
        ({"model": RAW, "train": {"level_k": [2], "level_counts": [0]}}, "train.level_counts at least 1"),
        ({"model": RAW, "train": {"level_k": [2, "x"]}}, "train.level_k.1: "),
        ({"model": {**RAW, "hidden": 3}, "train": {"epochs": 0}}, "model.hidden: "),
        ({"model": RAW, "train": {"min_workers": 2}}, "train.min_workers must be at most train.num_workers"),
        ({"train": {"min_workers": 2}}, "train.min_workers must be at most train.num_workers"),
        ({"train": {"episodes": 0}}, "train.episodes: "),
        ({"model": 3}, "model: expected a group of keys (features, hidden, num_conv)"),
        ({"train": [1]}, "train: expected a group of keys (num_workers, "),
        ({"model": None}, "model: expected a group of keys"),
        ({3: 1}, "unknown option 3"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_with_its_key(raw: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tau", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("tau=[", "the value is not valid YAML"),
        ("tau.x.y=1", "tau"),
        ("model=gat", "model: expected a group of keys"),
    ],
)
def test_a_bad_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[override])


def test_an_override_below_a_single_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tau\.x: tau is a single value"):
        load_config(written(tmp_path, "tau: 0.5"), ["tau.x=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected a mapping"),
        ("tau", "expected a mapping"),
        ("tau: [0.5\nk: 3\n", "not valid YAML"),
        (b"tau: \xff\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused_by_name(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().tau = 0.1


@pytest.mark.parametrize(
    ("encoder", "asked", "used"),
    [("gcn", None, True), ("gat", None, False), ("gcn", False, False), ("gat", True, True)],
)
def test_cluster_features_follow_the_encoder_unless_asked(encoder: str, asked: bool | None, used: bool) -> None:
    model = RawModel.model_validate({"encoder": encoder, "cluster_features": asked})
    assert model.uses_cluster_features == used

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.config import (
    Calibration,
    Config,
    ModelConfig,
    calibrated,
    config_schema,
    config_yaml,
    load_config,
    parse_config,
)
from hilander_dist.errors import ConfigError


def written(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "options.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_the_defaults_need_no_file() -> None:
    assert load_config() == Config()
    assert load_config().k == 10


def test_later_sources_win(tmp_path: Path) -> None:
    file = written(tmp_path, "k: 5\ntau: 0.5\nseed: 5\nmodel: {hidden: 64, encoder: gat}\n")
    config = load_config(file, ["tau=0.6", "seed=6", "model.hidden=32"], {"seed": 7, "max_levels": None})
    assert (config.k, config.tau, config.seed) == (5, 0.6, 7)
    assert (config.model.encoder, config.model.hidden) == ("gat", 32)
    assert config.max_levels == Config().max_levels


def test_a_flag_of_a_nested_option_is_written_with_dots() -> None:
    assert load_config(flags={"train.epochs": 3}).train.epochs == 3


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == Config()


def test_the_yaml_of_a_configuration_reads_back_as_the_same(tmp_path: Path) -> None:
    config = load_config(overrides=["train.level_k=[4, 3]", "train.level_counts=[1, 2]", "input.id_column=näme"])
    assert load_config(written(tmp_path, config_yaml(config))) == config


@settings(max_examples=15)
@given(
    k=st.integers(2, 500),
    tau=st.floats(0, 1),
    shards=st.none() | st.integers(1, 10**6),
    name=st.text(min_size=1),
    cluster_features=st.none() | st.booleans(),
)
def test_every_configuration_survives_yaml(
    k: int, tau: float, shards: int | None, name: str, cluster_features: bool | None
) -> None:
    config = parse_config(
        {
            "k": k,
            "tau": tau,
            "num_shards": shards,
            "input": {"id_column": name},
            "model": {"cluster_features": cluster_features},
        }
    )
    assert parse_config(yaml.safe_load(config_yaml(config))) == config


def test_the_yaml_shows_every_key() -> None:
    shown = yaml.safe_load(config_yaml(Config()).replace("# ", ""))
    assert shown.keys() == Config.model_fields.keys()
    assert shown["model"].keys() == ModelConfig.model_fields.keys()


def test_what_nobody_set_is_a_comment_so_that_others_may_bring_it() -> None:
    text = config_yaml(load_config(overrides=["tau=0.6", "model.hidden=8"]))
    assert parse_config(yaml.safe_load(text)).model_fields_set == {"tau", "model"}
    dumped = yaml.safe_load(text)
    assert load_config(overrides=["model.features=relational"]).train.epochs == 8
    assert parse_config({**dumped, "model": {"features": "relational"}}).train.epochs == 8
    assert calibrated(parse_config(dumped), Calibration(tau=0.3, k=80)).k == 80
    assert yaml.safe_load(config_yaml(Config())) is None


def test_the_schema_describes_every_option() -> None:
    schema = json.loads(config_schema())
    groups = [schema, *schema["$defs"].values()]
    assert len(groups) == 5
    for group in groups:
        assert all("description" in entry or "$ref" in entry for entry in group["properties"].values())
    assert schema["properties"]["tau"]["maximum"] == 1


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("tua", "tau"), ("epochs", "train.epochs"), ("model.hiden", "model.hidden"), ("train.lr_rate", "train.lr")],
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
        ({"model": {"encoder": "cnn"}}, "model.encoder: "),
        ({"train": {"level_k": [10], "level_counts": [1, 2]}}, "one entry each per hierarchy"),
        ({"train": {"level_k": [], "level_counts": []}}, "one entry each per hierarchy"),
        ({"train": {"level_k": [1], "level_counts": [1]}}, "train.level_k must be at least 2"),
        ({"train": {"level_k": [2], "level_counts": [0]}}, "train.level_counts at least 1"),
        ({"train": {"level_k": [2, "x"]}}, "train.level_k.1: "),
        ({"model": 3}, "model: expected a group of keys (features, encoder, "),
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
    assert parse_config({"model": {"encoder": encoder, "cluster_features": asked}}).model.uses_cluster_features == used

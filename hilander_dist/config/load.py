"""Options from files and the command line, and back: YAML, JSON schema, and what is refused with the key and the remedy."""

import difflib
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hilander_dist.config.run import KINDS, USUAL_KIND, ClusterConfig, Config, InputConfig
from hilander_dist.errors import ConfigError


def load_config(
    file: Path | None = None, overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Build the effective configuration.

    Args:
        file: YAML file with (some of) the keys.
        overrides: ``key=value`` strings; the value is read as YAML.
        flags: dotted keys to values, applied last; None values are left out.

    Raises:
        ConfigError: a file that is no YAML mapping, an unknown key (the nearest known one is named), a bad value.
    """
    raw: dict[str, Any] = {}
    if file is not None:
        raw = _read_yaml(file)
    for item in overrides:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {item!r}: write it as key=value, for example --set tau=0.7")
        try:
            _put(raw, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError:
            raise ConfigError(f"--set {item!r}: the value is not valid YAML") from None
    for key, value in (flags or {}).items():
        if value is not None:
            _put(raw, key, value)
    return parse_config(raw)


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Validate a mapping of options; see ``load_config`` for the errors."""
    _refuse_unknown(raw)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise ConfigError(f"{key}: {first['msg']} (got {first['input']!r})") from None


def config_yaml(config: Config) -> str:
    """The configuration as YAML, every key present; those that nobody set as comments, as a checkpoint may bring other values."""
    given = config.model_dump(mode="json", exclude_unset=True)
    return "".join(_yaml_lines(config.model_dump(mode="json"), given, ""))


def _yaml_lines(values: Mapping[str, Any], given: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        mark = "" if given.get(key, {}) != {} else "# "
        if isinstance(value, Mapping):
            yield f"{mark}{indent}{key}:\n"
            yield from _yaml_lines(value, given.get(key, {}), f"{indent}  ")
        else:
            line = yaml.safe_dump({key: value}, width=1000)
            yield textwrap.indent(line, mark + indent, lambda _: True)


def config_schema() -> str:
    """The JSON schema of the configuration."""
    return json.dumps(Config.model_json_schema(), indent=2)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"config file {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file}: not valid YAML ({' '.join(str(error).split())})") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"config file {file}: expected a mapping of keys to values")
    return raw


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        nested = raw.setdefault(parent, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"{dotted}: {parent} is a single value, not a group of keys")
        raw = nested
    raw[last] = value


def _refuse_unknown(raw: Mapping[str, Any]) -> None:
    kind = _kind(raw)
    (other,) = KINDS.keys() - {kind}
    groups, others = _groups(kind), _groups(other)
    for key, value in raw.items():
        if key not in Config.model_fields:
            raise _unknown(str(key))
        if key not in groups:
            continue
        known = groups[key].model_fields
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected a group of keys ({', '.join(known)})")
        for name in value:
            if name in others[key].model_fields and name not in known:
                raise ConfigError(
                    f"{key}.{name}: only a {other} model has it: leave it out, or set model.features={other}"
                )
            if name not in known:
                raise _unknown(f"{key}.{name}")


def _kind(raw: Mapping[str, Any]) -> str:
    """The kind of model that is asked for."""
    model = raw.get("model")
    kind = model.get("features", USUAL_KIND) if isinstance(model, Mapping) else USUAL_KIND
    if kind not in list(KINDS):
        raise ConfigError(f"model.features: {kind!r} is no kind of model: set one of {', '.join(KINDS)}")
    return str(kind)


def _groups(kind: str) -> dict[str, type[BaseModel]]:
    """The groups of options of a run with that kind of model."""
    model, train = KINDS[kind]
    return {"input": InputConfig, "model": model, "train": train, "cluster": ClusterConfig}


def _unknown(key: str) -> ConfigError:
    """It names the nearest known option, of either kind of model."""
    known = {name: None for name in Config.model_fields if name not in _groups(USUAL_KIND)}
    for kind in KINDS:
        known |= {f"{group}.{name}": None for group, part in _groups(kind).items() for name in part.model_fields}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return ConfigError(f"unknown option {key}: did you mean {near[0]}? `hilander config --schema` lists all")

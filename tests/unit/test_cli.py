import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from typer.testing import CliRunner, Result

import hilander_dist
import hilander_dist.jobs.cluster as cluster_job
from hilander_dist.cli import app, main
from hilander_dist.config import Config, config_yaml
from hilander_dist.errors import ClusterError, InputError


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """The command line points the log at the runner's stderr, which is closed afterwards."""
    yield
    structlog.reset_defaults()


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def cluster(*more: str) -> Result:
    return invoke("cluster", "--input", "in.parquet", "--model", "model.pth", "--output", "out", *more)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Replaces the clustering job; its input and model are there."""
    monkeypatch.chdir(tmp_path)
    for name in ("in.parquet", "in2.parquet", "model.pth"):
        (tmp_path / name).write_bytes(b"x")
    return lambda run: monkeypatch.setattr(cluster_job, "run_cluster_job", run)


def failing(error: Exception) -> Callable[..., None]:
    def run(*args: Any) -> None:
        raise error

    return run


def test_config_prints_the_effective_configuration(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("k: 5\ntau: 0.7\n")
    result = invoke("config", "--config", str(tmp_path / "options.yaml"), "--set", "tau=0.6", "--set", "model.hidden=8")
    assert (result.exit_code, result.stderr) == (0, "")
    shown = yaml.safe_load(result.stdout)
    assert (shown["k"], shown["tau"], shown["model"]["hidden"]) == (5, 0.6, 8)
    assert f"# seed: {Config().seed}\n" in result.stdout


def test_config_without_options_prints_the_defaults() -> None:
    assert invoke("config").stdout == config_yaml(Config())


def test_config_prints_the_options_of_a_raw_model() -> None:
    shown = invoke("config", "--set", "model.features=raw").stdout
    assert "\nmodel:\n  features: raw\n#   encoder: gcn\n" in shown
    assert "#   level_k:\n" in shown
    assert "episodes" not in shown


def test_config_prints_the_schema() -> None:
    assert json.loads(invoke("config", "--schema").stdout)["properties"].keys() == Config.model_fields.keys()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("config", "--set", "tua=1"), "error: unknown option tua: did you mean tau?"),
        (("config", "--set", "tau=2"), "error: tau: "),
        (("config", "--config", "no/such.yaml"), "error: config file no/such.yaml: No such file"),
        (("cluster", "--input", "i", "--model", "m", "--output", "o", "--k", "1"), "error: k: "),
        (("train", "--input", "i", "--output", "o", "--epochs", "0"), "error: train.epochs: "),
        (
            ("config", "--set", "model.encoder=gat"),
            "error: model.encoder: only a raw model has it: leave it out, or set model.features=raw\n",
        ),
        (
            ("evaluate", "--assignments", "a", "--labels", "l", "--set", "train.balance=false"),
            "error: train.balance: only a raw model has it",
        ),
        (
            ("train", "--input", "i", "--output", "o", "--set", "model.features=raw", "--set", "train.episodes=9"),
            "error: train.episodes: only a relational model has it: leave it out, or set model.features=relational\n",
        ),
        (("cluster", "--input", "no/such", "--model", "m", "--output", "o"), "no/such"),
        (("evaluate", "--assignments", "no/such", "--labels", "no/other"), "no/other"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(
    args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [("nonsense",), ("cluster",), ("config", "--nonsense"), ("cluster", "--k", "many")])
def test_a_usage_error_has_exit_code_2(args: tuple[str, ...]) -> None:
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_names_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("train", "cluster", "evaluate", "config", "demo"))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("in.parquet: no rows:\n  nothing   to do"), 2, "error: in.parquet: no rows: nothing to do\n"),
        (ClusterError("a node is gone"), 1, "error: a node is gone\n"),
        (KeyError("x"), 1, "internal error: KeyError: 'x' (--debug shows the traceback)\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    error: Exception, code: int, line: str, job: Callable[[Callable[..., None]], None]
) -> None:
    job(failing(error))
    result = cluster()
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", line)


def test_a_long_internal_error_is_cut(job: Callable[[Callable[..., None]], None]) -> None:
    job(failing(RuntimeError("x" * 10_000)))
    assert len(cluster().stderr) < 700


def test_debug_prints_the_traceback_without_passwords_before_the_line(
    job: Callable[[Callable[..., None]], None],
) -> None:
    job(failing(InputError("http://me:secret@host/x: no rows")))
    result = cluster("--debug")
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("error: http://***@host/x: no rows\n")
    assert "secret" not in result.stderr


def test_the_version_is_printed() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"hilander_dist {hilander_dist.__version__}\n")


@pytest.mark.parametrize("option", ["--input", "--labels", "--assignments"])
def test_files_that_a_shell_made_of_an_unquoted_glob_are_explained(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["cluster", option, "a.parquet", "b.parquet", "--output", "out"])
    assert caught.value.code == 2
    assert f"error: b.parquet: one path too many behind {option} a.parquet: quote a glob" in capsys.readouterr().err


def test_flags_reach_the_job_above_files_and_overrides(
    tmp_path: Path, job: Callable[[Callable[..., None]], None]
) -> None:
    seen: list[Any] = []
    job(lambda *args: seen.extend(args))
    (tmp_path / "options.yaml").write_text("k: 5\nseed: 3\nmax_levels: 4\n")
    result = cluster(
        *("--config", str(tmp_path / "options.yaml"), "--set", "k=6", "--set", "seed=4"),
        *(
            "--input",
            "in2.parquet",
            "--k",
            "7",
            "--num-shards",
            "9",
            "--target-recall",
            "0.5",
            "--address",
            "auto",
            "--restart",
        ),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    input_uris, model_uri, output_uri, config, address, debug, restart = seen
    assert (input_uris, model_uri, output_uri) == (["in.parquet", "in2.parquet"], "model.pth", "out")
    assert (config.k, config.seed, config.max_levels) == (7, 4, 4)
    assert (config.num_shards, config.target_recall) == (9, 0.5)
    assert (address, debug, restart) == ("auto", False, True)


def test_main_ends_the_process_with_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["config", "--set", "tua=1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown option tua")


def test_the_installed_command_is_main() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"hilander": "hilander_dist.cli:main"}

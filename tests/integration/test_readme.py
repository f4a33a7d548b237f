"""Every command of the README is run here as it stands there, but for placeholders and smaller training.

``make demo`` starts a Ray of its own, as all of them do for a user; the others find the tests' one by RAY_ADDRESS.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hilander_dist.jobs.demo import write_embeddings
from tests import points

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SMALL = "--epochs 2 --set model.hidden=16 --set train.episodes=8"


def commands() -> list[str]:
    """The commands in the README's shell blocks, without comments, continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split(" #")[0].split()) for line in lines if line.strip()]


def one(start: str) -> str:
    """The README's only command that starts so."""
    found = [command for command in commands() if command.startswith(start)]
    assert len(found) == 1, f"{start!r}: {found}"
    return found[0]


def run(command: str, where: Path, ray_address: str = "local") -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "RAY_ADDRESS": ray_address}
    done = subprocess.run(
        command, shell=True, cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_command_has_a_test() -> None:
    elsewhere = ("export AWS_", "hilander cluster --input 's3://", "ray job submit")  # test_s3_jobs, test_ray_jobs
    here = (
        "make ",
        "pip install",
        "hilander train",
        "hilander cluster",
        "hilander evaluate",
        "hilander config",
        "hilander graph",
        "hilander tune",
        "hilander cut",
    )
    assert [command for command in commands() if not command.startswith(elsewhere + here)] == []


def test_make_demo_prints_the_table(tmp_path: Path) -> None:
    table = run(one("make demo").replace("make", f"make --no-print-directory -C {ROOT}"), tmp_path)
    final = re.search(r"^final +\d+ ( +0\.\d+){7}$", table, re.MULTILINE)
    assert final is not None, table
    clusters = Path(table.strip().splitlines()[-1].split(": ")[1])
    assert (clusters / "_SUCCESS").exists()


def test_make_test_runs_pytest(tmp_path: Path) -> None:
    assert ".venv/bin/pytest" in run(one("make test").replace("make", f"make -n -C {ROOT}"), tmp_path)


def test_pip_install_names_a_real_extra_and_file() -> None:
    command = one("pip install")
    extra = re.findall(r"\.\[(\w+)\]", command)
    assert set(extra) <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert (ROOT / command.split("--constraint ")[1].split()[0]).exists()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("readme")
    for name, seed in (("labelled", 1), ("embeddings", 2)):
        x_ND, label_N = points.clustered(seed, 300, 16, 12)
        write_embeddings(str(where / f"{name}.parquet"), np.asarray(x_ND), label_N)
    return where


@pytest.fixture(scope="module")
def clusters(data: Path, ray_address: str) -> Path:
    run(one("hilander cluster --input embeddings.parquet --output clusters"), data, ray_address)
    return data / "clusters"


def test_cluster_evaluate(data: Path, clusters: Path) -> None:
    assert (clusters / "_SUCCESS").exists()
    assert "300 labelled items scored" in run(one("hilander evaluate"), data)


def test_cut(data: Path, clusters: Path, ray_address: str) -> None:
    run(one("hilander cut"), data, ray_address)
    cut = json.loads((data / "coarser" / "manifest.json").read_text())
    cluster_N = pq.read_table(data / "coarser" / "assignments")["cluster_id"]
    assert len(cluster_N) == 300
    assert len(cluster_N.unique()) == cut["clusters"]


def test_tune(data: Path, ray_address: str) -> None:
    labels = pq.read_table(data / "embeddings.parquet", columns=["id", "label"])
    pq.write_table(labels.slice(0, 200), data / "labels.parquet")
    assert "(200 items of 12 classes)" in run(one("hilander tune"), data, ray_address)


def test_train_and_cluster(data: Path, ray_address: str) -> None:
    run(f"{one('hilander train')} {SMALL}", data, ray_address)
    run(one("hilander cluster --input embeddings.parquet --model model"), data, ray_address)
    assert (data / "clusters-of-model" / "_SUCCESS").exists()


def test_graph(data: Path, ray_address: str) -> None:
    run(one("hilander graph"), data, ray_address)
    table = pq.read_table(data / "graph" / "graph")
    assert table["id"].to_pylist() == list(range(300))
    assert {len(ids) for ids in table["neighbor_ids"].to_pylist()} == {9}


def test_config(data: Path) -> None:
    plain, schema, mixed = (command for command in commands() if command.startswith("hilander config"))
    assert "max_bad_share: 0.01" in run(plain, data)
    assert '"max_bad_share"' in run(schema, data)
    given = run(mixed, ROOT).splitlines()
    assert "k: 40" in given
    assert "target_recall: 0.98" in given  # of the file

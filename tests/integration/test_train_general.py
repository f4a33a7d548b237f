"""The job that makes the general checkpoint, on small sets in the shape of the open ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from hilander_dist.config import RelationalModel
from hilander_dist.lander.checkpoint import load_checkpoint
from jobs.open_sets import ENCODER_ALPHABETS
from tests.points import clustered

OPTIONS = ("model.hidden=8", "train.episodes=4", "train.epochs=1")


def write_sets(folder: Path) -> None:
    """Embeddings of 12 classes a set, half of them for training, and pictures of noise in two more alphabets than the encoder learns."""
    for number, (name, dim) in enumerate(
        (("clinc150_minilm", 24), ("caltech101_efflite0", 300), ("grocery_efflite0", 300))
    ):
        x_ND, label_N = clustered(number, 720, dim, 12)
        np.savez(folder / f"{name}.npz", emb=x_ND.astype(np.float16), label=label_N, class_split=np.arange(12) % 2)
    rng = np.random.default_rng(0)
    label_N = np.repeat(np.arange(3 * (ENCODER_ALPHABETS + 4)), 10)
    images = (rng.integers(0, 256, (label_N.max() + 1, 28, 28))[label_N] * rng.random((len(label_N), 1, 1))).astype(
        np.uint8
    )
    alphabet_N = label_N // 3
    split_N = (alphabet_N >= ENCODER_ALPHABETS + 2).astype(np.int64)
    np.savez(folder / "omniglot_28.npz", images=images, label=label_N, split=split_N, alphabet=alphabet_N)


def train(data: Path, output: Path, ray_address: str) -> "subprocess.CompletedProcess[str]":
    options = [part for option in OPTIONS for part in ("--set", option)]
    command = [sys.executable, "-m", "jobs.train_general", "--data", str(data), "--output", str(output), *options]
    env = os.environ | {"RAY_ADDRESS": ray_address}
    return subprocess.run(command, env=env, check=False, capture_output=True, text=True)


def checkpoints(output: Path) -> dict[Path, int]:
    """The files of the network's training, by the time of their writing."""
    found = (output / "_work" / "train").rglob("checkpoint_*/*")
    return {file: file.stat().st_mtime_ns for file in found}


def test_the_same_command_goes_on_with_a_run_that_was_killed(tmp_path: Path, ray_address: str) -> None:
    write_sets(tmp_path)
    output = tmp_path / "model"
    done = train(tmp_path, output, ray_address)
    assert done.returncode == 0, done.stderr
    made = (output / "model.safetensors").read_bytes()
    model = load_checkpoint(made, "model", RelationalModel())
    assert model.dim is None
    # As if it had been killed at the end of training, which is not begun again.
    trained = checkpoints(output)
    assert trained
    (output / "_SUCCESS").unlink()
    (output / "model.safetensors").unlink()
    again = train(tmp_path, output, ray_address)
    assert again.returncode == 0, again.stderr
    assert (output / "model.safetensors").read_bytes() == made
    assert checkpoints(output) == trained

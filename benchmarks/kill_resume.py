"""SIGKILL a clustering job and its whole Ray at moments drawn over the run, resume it, and compare.

    python -m benchmarks.kill_resume [--model general --kills 20 --points 50000 --dim 128 --json]

Moments are drawn over the time of the run; with the general checkpoint, half of them: the others are when a level of its path
leaves moves or a marker, spread over the merges of all rows. Each time the same command runs on a local Ray of its own, is
killed with all its processes, and is given again. Printed per kill: when and in which stage, blocks that had been saved, how
many of those were written again (0 is asked), seconds of work repeated, and whether the result has the bytes of an undisturbed
run. Work repeated is what both attempts took together beyond an undisturbed run, without the start of Ray and Python, which
every attempt pays.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch

from benchmarks.end_to_end import write_parquet
from hilander_dist.config import RawModel
from hilander_dist.lander.checkpoint import save_checkpoint
from hilander_dist.lander.model import Lander

POLL_S = 0.002
MODELS = ("general", "raw")
"""The checkpoint that comes with the package, or random weights of the paper's model."""

LEVELS = 23
"""Of the general checkpoint's path."""

Moment = float | str
"""Seconds of work, or the file in ``_work/`` whose writing it is."""


def command(folder: Path, output: Path) -> list[str]:
    hilander = str(Path(sys.executable).with_name("hilander"))
    given: list[Path | str] = ["--input", folder / "in", "--output", output, "--num-shards", "8"]
    if (folder / "model.safetensors").exists():
        given += ["--model", folder / "model.safetensors"]
    return [hilander, "cluster", *map(str, given)]


def start(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(folder, output), stderr=subprocess.DEVNULL, env={**os.environ, "RAY_ADDRESS": "local"}
    )


def kill_all(driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL the driver and every process below it."""
    driver.send_signal(signal.SIGSTOP)  # it would go on while its processes are listed
    tree = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    driver.wait()
    psutil.wait_procs(tree, timeout=30)


def work_begins(output: Path, driver: subprocess.Popen[bytes]) -> float:
    """Wait until Ray is up and the job has written what it plans; the moment, on this process's clock."""
    while not (output / "_work" / "markers" / "plan.json").exists():
        if driver.poll() is not None:
            raise SystemExit(f"the job ended with {driver.returncode} before it began")
        time.sleep(POLL_S)
    return time.perf_counter()


def files_of(output: Path) -> dict[str, int]:
    """Saved blocks and markers with the time of their last change."""
    found = {}
    for path in (output / "_work").rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            found[path.relative_to(output).as_posix()] = path.stat().st_mtime_ns
    return found


def result_of(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for folder in ("assignments", "clusters", "tree")
        for path in sorted((output / folder).glob("*"))
    }


def stage_of(files: dict[str, int]) -> str:
    """What the newest file belongs to."""
    return max(files, key=lambda name: files[name]).removeprefix("_work/")


def undisturbed(folder: Path, output: Path) -> tuple[float, float]:
    """Seconds of work, and of everything that is not work."""
    began = time.perf_counter()
    driver = start(folder, output)
    first = work_begins(output, driver)
    if driver.wait():
        raise SystemExit(f"the undisturbed job ended with {driver.returncode}")
    return time.perf_counter() - first, first - began


def moments(model: str, kills: int, whole: float) -> list[Moment]:
    """When runs are killed that take `whole` seconds."""
    merging = kills // 2 if model == "general" else 0
    levels = np.linspace(1, LEVELS - 1, merging).round().astype(int).tolist()
    files = [
        f"level-0/path-{at:02d}/moves.safetensors" if number % 2 else f"markers/level-0/path-{at:02d}.json"
        for number, at in enumerate(levels)
    ]
    return [*sorted(np.random.default_rng(0).uniform(0, whole, kills - merging).tolist()), *files]


def wait_for(moment: Moment, output: Path, first: float, driver: subprocess.Popen[bytes]) -> None:
    """Until it is time, or the run has ended."""
    if isinstance(moment, str):
        while not (output / "_work" / moment).exists() and driver.poll() is None:
            time.sleep(POLL_S)
    else:
        time.sleep(max(0.0, first + moment - time.perf_counter()))


def killed_and_resumed(folder: Path, output: Path, moment: Moment) -> dict[str, Any]:
    """Kill one run at a moment and resume it."""
    driver = start(folder, output)
    first = work_begins(output, driver)
    wait_for(moment, output, first, driver)
    killed = time.perf_counter() - first
    row = {"moment": moment if isinstance(moment, str) else round(moment, 2), "killed_s": round(killed, 2)}
    if driver.poll() is not None:
        return {**row, "stage": "was complete"}
    kill_all(driver)
    if (output / "_SUCCESS").exists():
        return {**row, "stage": "was complete"}
    before = files_of(output)
    again = start(folder, output)
    began = time.perf_counter()
    while again.poll() is None:
        time.sleep(POLL_S)
    seconds = time.perf_counter() - began
    after = files_of(output)
    rewritten = [name for name, changed in before.items() if "/markers/" not in name and after.get(name) != changed]
    return {
        **row,
        "stage": stage_of(before),
        "saved": len(before),
        "written_again": len(rewritten),
        "resumed_s": round(seconds, 2),
        "exit_code": again.returncode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="general")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parquet(folder / "in", args.points, args.dim, 0)
        if args.model == "raw":
            torch.manual_seed(0)
            (folder / "model.safetensors").write_bytes(save_checkpoint(Lander(args.dim, RawModel(hidden=512)), {}))
        undisturbed(folder, folder / "warm")  # compiled kernels are cached
        whole, idle = undisturbed(folder, folder / "whole")
        expected = result_of(folder / "whole")
        kills = []
        for number, moment in enumerate(moments(args.model, args.kills, whole)):
            output = folder / f"killed-{number}"
            row = killed_and_resumed(folder, output, moment)
            row["equal"] = result_of(output) == expected
            if "resumed_s" in row:
                row["repeated_s"] = round(row["killed_s"] + row["resumed_s"] - idle - whole, 2)
            kills.append(row)
            print(json.dumps(row), file=sys.stderr)
    result = {
        "model": args.model,
        "points": args.points,
        "whole_s": round(whole, 2),
        "kills": kills,
        "equal": sum(row["equal"] for row in kills),
        "written_again": sum(row.get("written_again", 0) for row in kills),
        "worst_repeated_s": max(row.get("repeated_s", 0.0) for row in kills),
    }
    print(json.dumps(result) if args.json else "\n".join(f"{key:18} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()

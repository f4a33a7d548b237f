"""Train the general checkpoint, which comes with the package, on the training halves of the open sets.

    python -m jobs.train_general --data DIR --output DIR [--leave-out SET] [--set KEY=VALUE ...]

``--leave-out`` trains without one set: how good the recipe is on a domain that it has not seen.
"""

import argparse
import tempfile
from pathlib import Path

from hilander_dist.config import load_config
from hilander_dist.pipeline.train import run_train_job
from jobs.open_sets import GENERAL, load_set, write_half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the .npz files")
    parser.add_argument("--output", required=True, help="directory for the result; local or s3://")
    parser.add_argument("--leave-out", choices=GENERAL, help="train without this set")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="option of `hilander train`")
    parser.add_argument("--address", help="Ray cluster; default RAY_ADDRESS, else a local Ray")
    arguments = parser.parse_args()
    config = load_config(overrides=["model.features=relational", *arguments.set])
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name in GENERAL:
            if name != arguments.leave_out:
                files.append(Path(folder, f"{name}.parquet"))
                write_half(load_set(arguments.data, name)[0], files[-1])
        run_train_job([str(file) for file in files], arguments.output, config, arguments.address)


if __name__ == "__main__":
    main()

"""Train the general checkpoint, which comes with the package, on the training halves of the open sets.

    python -m jobs.train_general --data DIR --output DIR [--leave-out SET] [--set KEY=VALUE ...]

``--leave-out`` trains without one set: how good the recipe is on a domain that it has not seen. The halves are written to
``OUTPUT-halves``, where workers on all nodes can read them if it is on S3 or a shared disk; the same command goes on with a run that was
killed.
"""

import argparse
from pathlib import Path

from hilander_dist.config import load_config
from hilander_dist.jobs.train import run_train_job
from hilander_dist.storage import Storage
from jobs.open_sets import GENERAL, half_as_parquet, load_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the .npz files")
    parser.add_argument("--output", required=True, help="directory for the result; local or s3://")
    parser.add_argument("--leave-out", choices=GENERAL, help="train without this set")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="option of `hilander train`")
    parser.add_argument("--restart", action="store_true", help="discard the run that the output directory holds")
    parser.add_argument("--address", help="Ray cluster; default RAY_ADDRESS, else a local Ray")
    arguments = parser.parse_args()
    config = load_config(overrides=arguments.set)
    folder = Storage(f"{arguments.output.rstrip('/')}-halves")
    names = [name for name in GENERAL if name != arguments.leave_out]
    there = {info.path for info in folder.list()}
    for name in names:
        if f"{name}.parquet" not in there:  # Written anew it would be another input, with which no run goes on.
            folder.put(f"{name}.parquet", half_as_parquet(load_set(arguments.data, name)[0]))
    uris = [folder.child(f"{name}.parquet").uri for name in names]
    run_train_job(uris, arguments.output, config, arguments.address, restart=arguments.restart)


if __name__ == "__main__":
    main()

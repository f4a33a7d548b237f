"""Entry point for ``ray job submit -- python jobs/train.py --input ... --output ...``."""

import sys

from hilander_dist.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])

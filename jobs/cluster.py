"""Entry point for ``ray job submit -- python jobs/cluster.py --input ... --model ... --output ...``."""

import sys

from hilander_dist.cli import main

if __name__ == "__main__":
    main(["cluster", *sys.argv[1:]])

"""What a run depends on."""

import time
from pathlib import Path

import numpy as np

from hilander_dist.config import ClusterConfig, Config, InputConfig
from hilander_dist.pipeline.cluster import manifest_head, run_fingerprint
from hilander_dist.source import open_source


def test_the_time_to_wait_for_nodes_is_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.eye(4, dtype=np.float32))
    source = open_source(str(tmp_path / "in.npy"), InputConfig())
    patient, other = Config(cluster=ClusterConfig(wait_s=9000)), Config(seed=1)
    fingerprint = run_fingerprint("graph", patient, source)
    assert fingerprint == run_fingerprint("graph", Config(), source)
    assert fingerprint != run_fingerprint("graph", other, source)
    assert manifest_head("graph", patient, fingerprint, [source], time.time())["config"]["cluster"] == {"wait_s": 9000}

"""Property tests draw the same examples every time, and none is judged by its time. No test has a Ray."""

import sys

import pytest
from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True)
settings.load_profile("unit")


@pytest.fixture(scope="module", autouse=True)
def _without_ray() -> None:
    """End the Ray that integration tests have left in this process: tests would find it, and its processes take time."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()

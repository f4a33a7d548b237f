"""What a Ray that does not start looks like to the user."""

import pytest
import ray

from hilander_dist.errors import ClusterError
from hilander_dist.runtime import ray_session


def test_a_ray_that_does_not_start_in_time_is_no_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(**options: object) -> None:
        raise Exception("The current node timed out during startup.")  # Ray's own class.

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_late)
    with pytest.raises(ClusterError, match=r"timed out during startup.*busy\? Try again"), ray_session(None):
        pass

"""What a node with another version of the package is told, from within a task and from its failure to load one."""

import pytest
import ray

from hilander_dist import versions
from hilander_dist.errors import ClusterError
from hilander_dist.run import code_version


def failure(text: str, cause: Exception) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("f", text, cause, pid=1, ip="10.0.0.7")  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "is_own_ray", lambda: False)


def test_a_task_of_this_version_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions.job_version() == code_version()
    versions.check_version(versions.job_version())


def test_a_task_of_another_version_does_not() -> None:
    with pytest.raises(
        ClusterError, match=r"^node [\d.]+ has hilander_dist .*, the job 0\.0\.9\+abc: install the same"
    ):
        versions.check_version("0.0.9+abc")


def test_a_ray_of_this_process_has_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "is_own_ray", lambda: True)
    assert versions.job_version() is None
    versions.check_version(versions.job_version())


def test_a_package_without_a_module_of_ours_is_another_one() -> None:
    missing = "ModuleNotFoundError: No module named 'hilander_dist.exchange'"
    text = f"ray::f() (pid=1, ip=10.0.0.7)\nray.exceptions.RaySystemError: System error: ...\ntraceback:\n{missing}\n"
    error = versions.other_package(failure(text, ImportError()))
    assert str(error).startswith(f"node 10.0.0.7 has not the job's hilander_dist {code_version()} ({missing}): install")


@pytest.mark.parametrize(
    "text",
    [
        "ray::f() (pid=1, ip=10.0.0.7)\nModuleNotFoundError: No module named 'hilander_dist.exchange'",
        "ray::f() (pid=1, ip=10.0.0.7)\nSystem error: \nModuleNotFoundError: No module named 'other'",
    ],
)
def test_other_failures_are_not(text: str) -> None:
    assert versions.other_package(failure(text, ValueError("x"))) is None

"""When a job waits for nodes, and what it counts as one."""

import json
from typing import Any

import pytest
import ray

from hilander_dist import waiting

IDS = ("a" * 56, "b" * 56)


def nodes_of(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    nodes = [{"NodeID": IDS[at % 2], "Alive": True, "Resources": of} for at, of in enumerate(resources)]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"NodeID": "c", "Alive": False, "Resources": {"CPU": 99.0}}])


def report_of(monkeypatch: pytest.MonkeyPatch, report: Any) -> None:
    monkeypatch.setattr(waiting, "is_autoscaler_v2", lambda fetch_from_server: False)
    monkeypatch.setattr(waiting, "is_own_ray", lambda: False)
    monkeypatch.setattr(waiting, "_internal_kv_get", lambda key: report and json.dumps(report).encode())


def test_a_bundle_must_fit_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes_of(monkeypatch, {"CPU": 4, "memory": 3e9}, {"CPU": 1, "GPU": 2, "memory": 1e9}, {"memory": 1e12})
    assert waiting.places({"CPU": 1}) == 5
    assert waiting.places({"CPU": 1, "memory": 1.5e9}) == 2
    assert waiting.places({"CPU": 1, "GPU": 1}) == 1
    assert waiting.places({"CPU": 2, "GPU": 1}) == 0


def test_without_a_ray_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes_of(monkeypatch, {"CPU": 1})
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert waiting.wait_for({"CPU": 1}, 600)
    assert not waiting.wait_for({"CPU": 1}, 600, 2)


@pytest.mark.parametrize(
    ("report", "static"),
    [
        ({"active_nodes": {f"node_{IDS[0]}": 1}, "node_type_mapping": {IDS[1]: f"node_{IDS[1]}"}}, True),
        ({"active_nodes": {"ray.head.default": 1, "ray.worker.default": 1}, "node_type_mapping": None}, False),
        ({"active_nodes": {}, "node_type_mapping": {IDS[0]: "headgroup"}}, False),
        ({"active_nodes": {}, "node_type_mapping": None}, False),
        (None, False),
    ],
)
def test_a_static_cluster_is_told_by_the_types_of_its_nodes(
    report: Any, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes_of(monkeypatch, {"CPU": 1}, {"CPU": 1})
    report_of(monkeypatch, {"autoscaler_report": report} if report else None)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(waiting, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(waiting, "POLL_S", 0.01)
    assert not waiting.wait_for({"CPU": 1, "GPU": 1}, 0.02)
    assert asked == ([] if static else [[{"CPU": 1, "GPU": 1}], []])


def test_the_first_cpu_of_a_static_cluster_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes_of(monkeypatch, {"memory": 1e9})
    report_of(monkeypatch, {"autoscaler_report": {"active_nodes": {f"node_{IDS[0]}": 1}}})
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    asked: list[list[dict[str, float]]] = []

    def ask(bundles: list[dict[str, float]]) -> None:
        asked.append(bundles)
        nodes_of(monkeypatch, {"memory": 1e9}, {"CPU": 2})

    monkeypatch.setattr(waiting, "request_resources", ask)
    monkeypatch.setattr(waiting, "POLL_S", 0.01)
    assert waiting.wait_for({"CPU": 1}, 60, 2)
    assert asked == [[{"CPU": 1}, {"CPU": 1}], []]

"""Metrics: those that dashboard, alerts and documents speak of are those that the roles have, and no caller can make any."""

from __future__ import annotations

import importlib
import json
import re
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client.registry import Collector

from services.runtime import metrics
from services.testnet.compose import compose_file
from services.testnet.layout import Shape
from services.testnet.targets import container_targets
from tools.make_dashboard import dashboard

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
ROLES = {
    "node": "node.app", "requester": "requester.app", "provider": "provider.app", "platform": "services.platform.app",
    "pool": "pool.manager.app", "miner": "pool.miner.app",
}  # fmt: skip
BOUNDED = {
    "method", "code", "kind", "reason", "finding", "end", "phase", "level", "role", "name", "version",
}  # fmt: skip
"""Labels whose values are of a set that our own code knows."""
SHARED = {"rpc", "build", "data", "certificate", "log"}
NAME = re.compile(r"\b(?:pofl|process)_[a-z_]+")


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    """Name of each series to the name of its family, of all roles."""
    for module in ROLES.values():
        importlib.import_module(module)
    found = {}
    for collector in list(metrics.REGISTRY._collector_to_names):
        for name in metrics.REGISTRY._collector_to_names[collector]:
            if not name.endswith("_created"):
                found[name] = _family(collector, name)
    # Those of the process itself have no names until they are read.
    samples = [sample.name for family in metrics.REGISTRY.collect() for sample in family.samples]
    found |= {name: name for name in samples if name.startswith("process_")}
    return {name: family for name, family in found.items() if not family.startswith("pofl_test")}


def _family(collector: Collector, name: str) -> str:
    kind = getattr(collector, "_type", "")
    own = getattr(collector, "_name", name)
    return f"{own}_total" if kind == "counter" else own


def speaks_of(text: str) -> set[str]:
    return {name for name in NAME.findall(text) if not name.endswith("_")}


def test_dashboard_and_alerts_name_metrics_that_exist(known: dict[str, str]) -> None:
    board = json.loads((MONITORING / "grafana/dashboards/pofl.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(expressions) > 40
    alerts = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    rules = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    for expression in expressions + rules:
        named = speaks_of(expression)
        assert named or expression.startswith("up{"), expression  # Prometheus's own: whether a process answers
        assert named <= set(known), expression
    shown = {known[name] for expression in expressions for name in speaks_of(expression)}
    ours = {family for family in known.values() if family.startswith("pofl_")}
    assert ours - shown == {"pofl_build_info"}, "the dashboard shows every metric of ours"


def test_operations_lists_each_metric_and_no_other(known: dict[str, str]) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text[text.index("### Every metric") :]
    table = table[: table.index("\n## ")]
    ours = {family for family in known.values() if family.startswith("pofl_")}
    assert {name for name in speaks_of(table) if name.startswith("pofl_")} == ours


def test_every_role_has_metrics_of_its_own(known: dict[str, str]) -> None:
    areas = {family.split("_")[1] for family in known.values() if family.startswith("pofl_")}
    assert areas == {*ROLES, *SHARED}


def test_labels_are_of_few_values(known: dict[str, str]) -> None:
    """No label can hold what a peer chooses: an address, an account, a task."""
    for collector in metrics.REGISTRY._collector_to_names:
        if not getattr(collector, "_name", "").startswith("pofl_test"):
            assert set(getattr(collector, "_labelnames", ())) <= BOUNDED, collector


def test_names_follow_prometheus(known: dict[str, str]) -> None:
    for name, family in known.items():
        assert re.fullmatch(r"(pofl|process)_[a-z0-9_]+", name)
        assert not re.search(r"_(ms|milliseconds|mib|kb|percent)(_|$)", family), f"{family}: base units are seconds and bytes"


def test_the_exporter_is_off_unless_set_and_serves_what_was_described(tmp_path: Path) -> None:
    metrics.describe_process("node", "node0", "0.0.0", tmp_path)
    exporter = metrics.Exporter("127.0.0.1:0")
    try:
        with urllib.request.urlopen(f"http://{exporter.address}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    finally:
        exporter.close()
    assert 'pofl_build_info{name="node0",role="node",version="0.0.0"} 1.0' in text
    free = re.search(r"^pofl_data_free_bytes (\S+)$", text, re.M)
    assert free is not None
    assert float(free[1]) > 0
    assert "process_resident_memory_bytes" in text


def test_a_lost_data_folder_does_not_keep_metrics_from_being_read(tmp_path: Path) -> None:
    metrics.describe_process("node", "node0", "0.0.0", tmp_path / "gone")
    assert "pofl_data_free_bytes NaN" in metrics.render()


def test_generated_files_are_up_to_date() -> None:
    """`python tools/make_dashboard.py`; `pofl testnet compose-file --targets > deploy/monitoring/targets/compose.json`."""
    assert (MONITORING / "grafana/dashboards/pofl.json").read_text() == dashboard()
    assert (MONITORING / "targets/compose.json").read_text() == container_targets(Shape())


def test_prometheus_reads_what_is_mounted() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    services = yaml.safe_load(compose_file(Shape()))["services"]
    mounted = [volume.split(":") for name in ("prometheus", "grafana") for volume in services[name]["volumes"]]
    files = {there: ROOT / here for here, there, *_ in mounted if here.startswith("./")}
    assert all(path.exists() for path in files.values())
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} <= set(files)
    targets = json.loads((MONITORING / "targets/compose.json").read_text())
    processes = {name for name, service in services.items() if "healthcheck" in service and name not in ("init", "cli")}
    assert {entry["labels"]["process"] for entry in targets} <= set(services)
    assert len(targets) == len([name for name in services if name not in ("init", "cli", "prometheus", "grafana")]), processes

"""docker-compose.yml and Dockerfile hold what is promised of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import ConfigError
from services.runtime.probe import PATIENT, POLL, REST, TIMEOUT, WAIT
from services.testnet.compose import TASKS, compose_file
from services.testnet.layout import BALANCE, Shape
from tools.requirements import requirements

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
ONE_SHOT = {"init", "cli"}
WATCH = {"prometheus", "grafana"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def processes(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in compose["services"].items() if name not in ONE_SHOT | WATCH}


def test_the_file_is_the_one_that_the_command_prints() -> None:
    """`pofl testnet compose-file > docker-compose.yml` after a change of services/testnet/compose.py."""
    assert (ROOT / "docker-compose.yml").read_text(encoding="utf-8") == compose_file(Shape())


def test_it_is_the_default_testnet(compose: dict[str, Any]) -> None:
    names = set(processes(compose))
    assert names == {
        *(f"node{i}" for i in range(4)), "platform0", "requester0", "provider0", "pool0", "pool1",
        *(f"pool{p}-miner{m}" for p in range(2) for m in range(3)),
    }  # fmt: skip
    assert TASKS * Shape().reward <= BALANCE["requester"]


def test_no_service_has_more_rights_than_it_needs(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "privileged" not in service, name
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("cap_add", []) == (["CHOWN", "DAC_OVERRIDE"] if name == "init" else []), name
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"network_mode", "pid", "ipc", "devices"} & set(service) == ({"network_mode"} if name == "init" else set()), name
        assert ("user" in service) == (name == "init"), f"{name}: the image's own user is not root"
        folders = [volume for volume in service["volumes"] if volume.startswith(("/", "."))]
        assert not any("docker.sock" in volume for volume in service["volumes"]), name
        assert all(volume.startswith("./deploy/monitoring/") and volume.endswith(":ro") for volume in folders), name
        assert not folders or name in WATCH, name
    assert compose["services"]["init"]["network_mode"] == "none"


def test_every_service_has_limits_and_every_process_a_health_check(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"]), name
        assert 0 < service["cpus"] <= 1, name
        assert service["pids_limit"] <= 256, name
    for name, service in processes(compose).items():
        check = service["healthcheck"]
        assert check["test"][:6] == ["CMD", "python", "-I", "-m", "services.runtime.probe", PATIENT], name
        # Without --patient such an interval would cost a core; with it a longer one would delay every start.
        assert check["interval"] == "1s", name
        assert int(check["timeout"].removesuffix("s")) > max(WAIT + POLL, REST) + TIMEOUT, name
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["options"]["max-size"], name
    assert all(compose["services"][name]["restart"] == "no" for name in ONE_SHOT)


def test_only_what_users_call_is_published_and_on_loopback(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert {name: published.pop(name) for name in WATCH} == {
        "prometheus": ["${MONITORING_BIND:-127.0.0.1}:7104:9090"], "grafana": ["${MONITORING_BIND:-127.0.0.1}:7103:3000"],
    }  # fmt: skip
    assert set(published) == {"node0", "platform0", "requester0"}
    for ports in published.values():
        assert all(re.fullmatch(r"\$\{TESTNET_BIND:-127\.0\.0\.1\}:71\d\d:7000", port) for port in ports)


def test_nothing_is_left_that_has_no_name(compose: dict[str, Any]) -> None:
    """The image wants a volume at /pofl: where none of ours is mounted the engine would make one, and `down` leave it."""
    assert "VOLUME /pofl" in DOCKERFILE
    ours = [name for name in compose["services"] if name not in WATCH]
    for name in ours:
        service = compose["services"][name]
        at = [volume.split(":")[1] for volume in service["volumes"]] + service["tmpfs"]
        assert "/pofl" in at, name


def test_traces_can_be_switched_on(compose: dict[str, Any]) -> None:
    for name, service in processes(compose).items():
        assert service["environment"] == {"OTEL_EXPORTER_OTLP_ENDPOINT": "${OTEL_EXPORTER_OTLP_ENDPOINT:-}"}, name
    assert "pyproject.toml tracing > roles.txt" in DOCKERFILE
    assert "pyproject.toml train data tracing > train.txt" in DOCKERFILE


def test_a_process_mounts_its_own_volume_only(compose: dict[str, Any]) -> None:
    for name, service in processes(compose).items():
        assert service["volumes"] == [f"{name}:/pofl"]
    assert compose["services"]["cli"]["volumes"] == ["user:/pofl:ro"]
    filled = {volume.partition(":")[0] for volume in compose["services"]["init"]["volumes"]}
    assert filled == set(compose["volumes"]) - WATCH == {"operator", "user", *processes(compose)}
    # Who collects metrics sees no process's folder.
    mounted = {volume.partition(":")[0] for name in WATCH for volume in compose["services"][name]["volumes"]}
    assert not mounted & filled


def test_monitoring_starts_on_demand_only_and_nobody_can_log_in(compose: dict[str, Any]) -> None:
    for name in WATCH:
        assert compose["services"][name]["profiles"] == ["monitoring"]
    environment = compose["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"


def test_processes_start_when_what_they_need_is_healthy(compose: dict[str, Any]) -> None:
    for name, service in processes(compose).items():
        needs = service["depends_on"]
        assert needs["init"] == {"condition": "service_completed_successfully"}, name
        assert all(need == {"condition": "service_healthy"} for other, need in needs.items() if other != "init"), name
        assert set(needs) <= set(compose["services"]), name
    # Three steps and no more: each costs as long as its slowest start.
    nodes = {f"node{i}" for i in range(4)}
    others = set(processes(compose)) - nodes - {"requester0"}
    needs = {name: set(service["depends_on"]) - {"init"} for name, service in processes(compose).items()}
    assert needs == {**{name: set() for name in nodes}, **dict.fromkeys(others, nodes), "requester0": others}


def test_each_image_is_built_by_one_service(compose: dict[str, Any]) -> None:
    built = {service["build"]["target"]: name for name, service in compose["services"].items() if "build" in service}
    assert built == {"train": "init", "roles": "node0"}


def test_other_shapes() -> None:
    compose = yaml.safe_load(compose_file(Shape(nodes=7, pools=3, miners=1, tasks=2, reward=5)))
    assert len(compose["services"]) == 2 + 2 + 7 + 3 + 3 + 3
    words = compose["services"]["init"]["command"]
    assert dict(zip(words[-10::2], words[-9::2], strict=True)) == {
        "--nodes": "7", "--pools": "3", "--miners": "1", "--tasks": "2", "--reward": "5",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="nodes is 0"):
        compose_file(Shape(nodes=0))


def test_the_image_runs_as_nobody_in_particular_and_holds_no_compiler() -> None:
    base = DOCKERFILE[DOCKERFILE.index(" AS base") :]
    assert re.search(r"^USER pofl$", base, re.M)
    (check,) = re.findall(r"^HEALTHCHECK (.*)$", base, re.M)
    assert check.startswith("--interval=1s --timeout=30s ")
    assert PATIENT in check
    for word in ("apt-get", "gcc", "build-essential", "pip ", "sudo", "ADD "):
        assert word not in base, word
    assert re.findall(r"^FROM base AS (\w+)$", DOCKERFILE, re.M) == ["roles", "train"]


def test_dependencies_are_a_layer_that_a_change_of_code_leaves_alone() -> None:
    lines = DOCKERFILE.splitlines()
    installs = [i for i, line in enumerate(lines) if "--requirement" in line]
    copies = [i for i, line in enumerate(lines) if line.startswith("COPY core ")]
    assert installs
    assert max(installs) < min(copies)
    assert "COPY . " not in DOCKERFILE


def test_no_secret_or_foreign_file_can_reach_an_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored  # everything that is not named
    assert not any(line.startswith("!testnet-data") for line in ignored)


def test_packages_without_training_are_far_fewer() -> None:
    project = ROOT / "pyproject.toml"
    assert not any(line.startswith(("torch", "flwr")) for line in requirements(project, []))
    assert {"torch", "flwr"} <= {line.partition("=")[0] for line in requirements(project, ["train"])}
    with pytest.raises(KeyError):
        requirements(project, ["nothing"])

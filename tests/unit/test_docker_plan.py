"""`pofl testnet up --docker` asks for the network of the compose file, and for nothing more; no engine is needed here."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from core.errors import ConfigError, NotFoundError, UnavailableError
from services.testnet.engine import Engine, _health, _translated
from services.testnet.layout import MANIFEST, Shape
from services.testnet.plan import (
    DOCKER,
    LABEL,
    PROCESS,
    WANTED,
    Container,
    Plan,
    Settings,
    call_from_here,
    load_settings,
    options,
    plan_of,
    save_settings,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
SETTINGS = Settings("pofl-test", Shape())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    for name, value in (
        ("TESTNET_IMAGE", SETTINGS.image), ("TESTNET_TRAIN_IMAGE", SETTINGS.train_image), ("TESTNET_BIND", SETTINGS.bind),
    ):  # fmt: skip
        text = text.replace(f"${{{name}:-{value}}}", value)
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def nanoseconds(text: str) -> int:
    return int(text.removesuffix("s")) * 10**9


def test_each_container_is_the_one_of_the_compose_file(compose: dict[str, Any]) -> None:
    plan = plan_of(SETTINGS)
    services = {name: s for name, s in compose["services"].items() if not s.get("profiles")}
    assert [plan.init.process, *(c.process for c in plan.containers)] == list(services)
    for container in (plan.init, *plan.containers):
        service, made = services[container.process], options(plan, container)
        name = container.process
        assert made["image"] == service["image"], name
        assert made["command"] == service["command"], name
        assert made["mem_limit"] == service["mem_limit"], name
        assert made["nano_cpus"] == int(service["cpus"] * 10**9), name
        assert made["pids_limit"] == service["pids_limit"], name
        for key in ("read_only", "cap_drop", "security_opt"):
            assert made[key] == service[key], (name, key)
        assert list(made["tmpfs"]) == service["tmpfs"], name  # type: ignore[call-overload]
        assert made.get("cap_add") == service.get("cap_add"), name
        assert made.get("user") == service.get("user"), name
        assert made.get("network_mode") == service.get("network_mode"), name
        assert made["init"] == service.get("init", False), name
        volumes = {plan.volume(v.partition(":")[0]): v.partition(":")[2] for v in service["volumes"]}
        assert {v: at["bind"] for v, at in made["volumes"].items()} == volumes, name  # type: ignore[attr-defined]
        ports = {f"{inner}/tcp": (host, int(outer)) for host, outer, inner in (p.split(":") for p in service.get("ports", ()))}
        assert made.get("ports", {}) == ports, name
        check = service["healthcheck"]
        if check.get("disable"):
            assert made["healthcheck"] == {"test": ["NONE"]}
        else:
            wanted = {key: nanoseconds(check[key]) for key in ("interval", "timeout", "start_period")}
            assert made["healthcheck"] == {"test": check["test"], "retries": check["retries"], **wanted}, name
        needs = {need: value["condition"] for need, value in service.get("depends_on", {}).items()}
        assert dict(container.needs) == needs, name
        assert made.get("restart_policy", {"Name": "no"}) == {"Name": service["restart"]}, name
    assert set(plan.volumes) == set(compose["volumes"]) - {"prometheus", "grafana"}


def test_everything_is_labelled_and_named_after_its_project() -> None:
    plan = plan_of(SETTINGS)
    for container in (plan.init, *plan.containers):
        labels: Any = options(plan, container)["labels"]
        assert (labels[LABEL], labels[PROCESS]) == ("pofl-test", container.process)
        assert plan.name(container.process) == f"pofl-test-{container.process}"


def test_no_container_starts_before_what_it_needs_can() -> None:
    plan = plan_of(SETTINGS)
    seen = {plan.init.process}
    for container in plan.containers:
        assert {name for name, _ in container.needs} <= seen, container.process
        seen.add(container.process)


def test_another_wish_is_another_container() -> None:
    def wanted(plan: Plan, process: str) -> str:
        container: Container = next(c for c in plan.containers if c.process == process)
        labels: Any = options(plan, container)["labels"]
        return str(labels[WANTED])

    plan, other = plan_of(SETTINGS), plan_of(replace(SETTINGS, bind="127.0.0.2"))
    assert wanted(plan, "node0") == wanted(plan_of(SETTINGS), "node0")
    assert wanted(plan, "node0") != wanted(other, "node0")  # its port is published elsewhere
    assert wanted(plan, "node1") == wanted(other, "node1")


def test_settings_are_found_again(tmp_path: Path) -> None:
    assert load_settings(tmp_path) is None
    save_settings(tmp_path / "net", SETTINGS)
    assert load_settings(tmp_path / "net") == SETTINGS


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged (no shape)"),
        ('{"project": "a"}', "is damaged (no shape)"),
        ('{"project": "a", "shape": {"knots": 4}}', "is damaged"),
        ('{"project": "../a", "shape": {}}', "project is '../a'"),
        ('{"project": "a", "shape": {"nodes": 0}}', "nodes is 0"),
        ('{"project": "a", "shape": {}, "bind": "everywhere"}', "--bind is 'everywhere'"),
        ('{"project": "a", "shape": {}, "bind": "1.2.3.400"}', "--bind is '1.2.3.400'"),
        ('{"project": "a", "shape": {}, "image": "a b"}', "'a b' is no name of an image"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / DOCKER).write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_settings(tmp_path)
    assert sentence in raised.value.message


def test_a_user_on_this_machine_finds_what_is_published(tmp_path: Path) -> None:
    members = [{"name": name, "listen": f"{name}:7000"} for name in ("node0", "node1", "platform0", "requester0")]
    (tmp_path / MANIFEST).write_text(json.dumps({"members": members}))
    call_from_here(tmp_path, replace(SETTINGS, bind="0.0.0.0"))
    found = {m["name"]: m["listen"] for m in json.loads((tmp_path / MANIFEST).read_text())["members"]}
    assert found == {
        "node0": "127.0.0.1:7100", "node1": "node1:7000", "platform0": "127.0.0.1:7101", "requester0": "127.0.0.1:7102",
    }  # fmt: skip
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        call_from_here(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("status", "health"),
    [
        ("Up 3 seconds (health: starting)", "starting"), ("Up About a minute (healthy)", "healthy"),
        ("Up 2 minutes (unhealthy)", "unhealthy"), ("Up 2 minutes (Paused)", ""), ("Exited (1) 3 seconds ago", ""),
        ("Created", ""),
    ],
)  # fmt: skip
def test_health_is_read_from_the_status(status: str, health: str) -> None:
    assert _health(status) == health


class Refusal(Exception):  # noqa: N818
    """As the SDK raises them."""

    def __init__(self, code: int, explanation: str) -> None:
        super().__init__(explanation)
        self.status_code, self.explanation = code, explanation


def test_what_the_engine_refuses_is_one_sentence() -> None:
    taken = Refusal(
        500, "driver failed programming external connectivity: Bind for 127.0.0.1:7100 failed: port is already allocated"
    )
    found = _translated("node0, 127.0.0.1:7100", taken)
    assert isinstance(found, UnavailableError)
    assert found.message == (
        "node0, 127.0.0.1:7100: the port is taken: stop what uses it, or choose another address with --bind"
    )
    other = _translated("node0, 127.0.0.1:7100", Refusal(500, "listen tcp4 127.0.0.1:7100: bind: address already in use"))
    assert other.message == found.message
    absent = _translated("node0, 192.0.2.1:7100", Refusal(500, "listen tcp4: bind: cannot assign requested address"))
    assert "this machine does not have the address" in absent.message
    assert isinstance(_translated("pool0", Refusal(404, "no such container")), NotFoundError)
    assert "does not answer any more" in _translated("pool0", TimeoutError("timed out")).message
    assert _translated("pool0", Refusal(409, "it is paused")).message == "the Docker engine refuses pool0: it is paused"


def seeing(*containers: dict[str, Any]) -> Engine:
    """An engine that has these containers, and does nothing."""
    return Engine(SimpleNamespace(api=SimpleNamespace(containers=lambda **_: list(containers))))


async def test_a_port_that_is_taken_is_told_before_anything_is_made() -> None:
    plan = plan_of(replace(SETTINGS, bind="127.0.0.37"))
    await seeing().check_ports(plan)
    with socket.create_server(("127.0.0.37", 7101)):
        with pytest.raises(UnavailableError, match=r"^platform0, 127\.0\.0\.37:7101: the port is taken: stop what uses it"):
            await seeing().check_ports(plan)
        labels = {PROCESS: "platform0"}
        ours = {"Labels": labels, "Status": "Up 3 seconds (healthy)", "State": "running", "ImageID": "sha256:0"}
        await seeing(ours).check_ports(plan)
    with pytest.raises(UnavailableError, match="this machine does not have the address"):
        await seeing().check_ports(plan_of(replace(SETTINGS, bind="192.0.2.1")))

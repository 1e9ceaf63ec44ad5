"""A testnet in containers as data: what `pofl testnet up --docker` asks an engine for, and nothing that talks to one.

It is the network of the compose file (services.testnet.compose), container for container; tests/unit/test_docker_plan.py
compares the two. What compose takes from the environment lies in `Settings`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from core.errors import ConfigError
from services.runtime.probe import PATIENT
from services.testnet.compose import CPUS, HEALTH, INIT, MEMORY, PIDS, PUBLISHED, TRAINS, before, init_command
from services.testnet.layout import MANIFEST, Shape, process_names
from services.testnet.places import ADMIN_PORT, PORT

__all__ = [
    "DOCKER", "LABEL", "PROCESS", "ROLE", "WANTED", "Container", "Plan", "Settings", "call_from_here", "load_settings",
    "options", "plan_of", "save_settings",
]  # fmt: skip

DOCKER: Final = "docker.json"
"""In the folder of a testnet whose processes are containers."""
LABEL: Final = "org.pofl.testnet"
"""Of all that an engine keeps for a network: the name of the project."""
PROCESS: Final = "org.pofl.process"
ROLE: Final = "org.pofl.role"
WANTED: Final = "org.pofl.wanted"
"""What a container was made from; another value, and it is made anew."""
SECOND: Final = 1_000_000_000
MOST_FILE: Final = 65_536
_PROJECT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ADDRESS: Final = re.compile(r"\d{1,3}(\.\d{1,3}){3}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one network in containers; kept in its folder."""

    project: str
    """Begins the names of its containers, volumes and network."""
    shape: Shape
    image: str = "pofl:0.1.0"
    train_image: str = "pofl-train:0.1.0"
    bind: str = "127.0.0.1"
    """Where the ports of `PUBLISHED` appear."""

    def check(self) -> None:
        """Raises ConfigError naming key and value."""
        self.shape.check()
        if not _PROJECT.fullmatch(self.project):
            raise ConfigError(f"project is {self.project!r}, it must be lower-case letters, digits, hyphens, at most 63")
        if not _ADDRESS.fullmatch(self.bind) or any(int(part) > 255 for part in self.bind.split(".")):
            raise ConfigError(f"--bind is {self.bind!r}, it must be an address of this machine like 127.0.0.1")
        for image in (self.image, self.train_image):
            if not image or not image.isprintable() or " " in image:
                raise ConfigError(f"{image!r} is no name of an image")

    @property
    def called_at(self) -> str:
        """The address at which this machine reaches what is published."""
        return "127.0.0.1" if self.bind == "0.0.0.0" else self.bind  # noqa: S104 - everywhere is here too


@dataclass(frozen=True, slots=True)
class Container:
    """One container: a process of the network, or `init`, which makes its files and ends."""

    process: str
    role: str
    image: str
    command: tuple[str, ...]
    volumes: tuple[tuple[str, str], ...]
    """(volume, where it is seen inside)."""
    memory: str
    needs: tuple[tuple[str, str], ...] = ()
    """(process, condition), conditions as compose has them."""
    published: int | None = None
    """Port of this machine that leads to the one for roles and users."""

    @property
    def is_init(self) -> bool:
        return self.process == INIT


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything of one network."""

    settings: Settings
    init: Container
    containers: tuple[Container, ...]
    """In order of start."""

    @property
    def network(self) -> str:
        return self.settings.project

    @property
    def volumes(self) -> tuple[str, ...]:
        return tuple(volume for volume, _ in self.init.volumes)

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.image for c in (self.init, *self.containers)))

    def name(self, process: str) -> str:
        """Of its container."""
        return f"{self.settings.project}-{process}"

    def volume(self, name: str) -> str:
        return f"{self.settings.project}_{name}"


def plan_of(settings: Settings) -> Plan:
    """Raises ConfigError."""
    settings.check()
    shape = settings.shape
    names = process_names(shape)
    filled = ("operator", "user", *(name for name, _, _ in names))
    init = Container(
        INIT, INIT, settings.train_image, tuple(init_command(shape)), tuple((name, f"/bundles/{name}") for name in filled),
        MEMORY[INIT],
    )  # fmt: skip
    containers = tuple(
        Container(
            name, role, settings.train_image if role in TRAINS else settings.image,
            ("run", role, "--config", f"/pofl/{name}/config.toml"), ((name, "/pofl"),), MEMORY[role],
            tuple(before(role, shape)), PUBLISHED.get(name),
        )
        for name, role, _ in names
    )  # fmt: skip
    return Plan(settings, init, containers)


def options(plan: Plan, container: Container) -> dict[str, object]:
    """Arguments of the engine's `containers.create`, less its network; the same container for the same arguments."""
    given: dict[str, object] = {
        "image": container.image,
        "command": list(container.command),
        "name": plan.name(container.process),
        "hostname": container.process,
        "volumes": {plan.volume(volume): {"bind": where, "mode": "rw"} for volume, where in container.volumes},
        "read_only": True,
        "tmpfs": {"/tmp": ""},  # noqa: S108 - in the container
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "mem_limit": container.memory,
        "nano_cpus": int(CPUS * SECOND),
        "pids_limit": PIDS[INIT if container.is_init else ""],
        "init": not container.is_init,
        "log_config": {"type": "json-file", "config": {"max-size": "10m", "max-file": "3"}},
    }
    if container.is_init:
        # Root with two capabilities, without a network: it gives each volume to the user of the images.
        given |= {
            "tmpfs": {"/tmp": "", "/pofl": ""},  # noqa: S108 - the image wants a volume at /pofl; this one is not left behind
            "user": "0:0",
            "network_mode": "none",
            "cap_add": ["CHOWN", "DAC_OVERRIDE"],
            "healthcheck": {"test": ["NONE"]},
        }
    else:
        check = ["CMD", "python", "-I", "-m", "services.runtime.probe", PATIENT, f"127.0.0.1:{ADMIN_PORT}"]
        given |= {
            "restart_policy": {"Name": "unless-stopped"},
            "healthcheck": {
                "test": check, "interval": HEALTH["interval"] * SECOND, "timeout": HEALTH["timeout"] * SECOND,
                "retries": HEALTH["retries"], "start_period": HEALTH["start_period"] * SECOND,
            },
        }  # fmt: skip
    if container.published is not None:
        given["ports"] = {f"{PORT}/tcp": (plan.settings.bind, container.published)}
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]
    given["labels"] = {
        LABEL: plan.settings.project, PROCESS: container.process, ROLE: container.role, WANTED: digest,
    }  # fmt: skip
    return given


def call_from_here(folder: Path, settings: Settings) -> None:
    """In the user's list of processes, put this machine's addresses of those that are published. Raises ConfigError."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for member in manifest["members"]:
            if member["name"] in PUBLISHED:
                member["listen"] = f"{settings.called_at}:{PUBLISHED[member['name']]}"
        path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error})") from None


def save_settings(folder: Path, settings: Settings) -> None:
    """Raises ConfigError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / DOCKER).write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {folder / DOCKER}: {error.strerror or error}") from None


def load_settings(folder: Path) -> Settings | None:
    """Of the testnet in this folder; None if its processes are no containers. Raises ConfigError."""
    path = folder / DOCKER
    try:
        with path.open("rb") as file:
            read = json.loads(file.read(MOST_FILE))
    except (FileNotFoundError, NotADirectoryError):  # whoever makes a testnet there says what is in the way
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error})") from None
    if not isinstance(read, Mapping) or not isinstance(read.get("shape"), Mapping):
        raise ConfigError(f"{path} is damaged (no shape)")
    try:
        settings = Settings(**{**read, "shape": Shape(**read["shape"])})
        settings.check()
    except TypeError as error:
        raise ConfigError(f"{path} is damaged ({error})") from None
    return settings

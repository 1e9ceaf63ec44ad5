"""A manifest's network in containers: the compose file that `pofl testnet compose-file` prints, driven by the docker command.

Everything is the product's: its images, its compose file, its `init`. Beside that only the addresses that who judges needs are
published, on a loopback address of this run's own. The network of a run, its volumes too, is gone when it is over.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from grpc import aio

from bench.manifest.backend import Healing
from bench.manifest.model import Act, Liar, Manifest, Perturbation
from core.errors import ConfigError, DeadlineError, PoflError, UnavailableError
from services.rpc.channel import connect
from services.rpc.tls import TlsFiles
from services.testnet.compose import PUBLISHED, TASKS, compose_file
from services.testnet.layout import Layout, load_layout
from services.testnet.places import PORT

__all__ = ["Containers", "command_of", "override", "why_not"]

ROOT: Final = Path(__file__).resolve().parents[2]
IMAGE: Final = os.environ.get("TESTNET_IMAGE", "pofl:0.1.0")
TRAIN_IMAGE: Final = os.environ.get("TESTNET_TRAIN_IMAGE", "pofl-train:0.1.0")
FIRST_PORT: Final = 7200
CALL_SECONDS: Final = 60.0
UP_SECONDS: Final = 480.0
STOP_SECONDS: Final = 180.0
MOST_COPIED: Final = 256 << 20


async def why_not() -> str:
    """Why no container can be run here; "" if they can."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    try:
        await _run(["docker", "version", "--format", "{{.Server.Version}}"], 20.0)
        built = [await _run(["docker", "image", "ls", "--quiet", image], 20.0) for image in (IMAGE, TRAIN_IMAGE)]
    except PoflError as error:
        return f"no docker engine answers: {error.message}"
    if not all(found.strip() for found in built):
        return f"the images {IMAGE} and {TRAIN_IMAGE} are not both built: `docker compose build`"
    return "" if await command_of() else "there is neither `docker compose` nor docker-compose"


async def command_of() -> list[str]:
    """The compose command of this machine; empty if there is none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            await _run([*command, "version"], 20.0)
        except PoflError:
            continue
        return command
    return []


def override(manifest: Manifest, host: str) -> tuple[str, dict[str, str]]:
    """A compose file beside the product's that publishes what is judged, and the addresses by process."""
    addresses = {name: f"{host}:{port}" for name, port in PUBLISHED.items() if name != "platform0"}
    lines = ["services:"]
    wanted = [name for name, role in manifest.processes if role in ("node", "pool") and name not in addresses]
    for port, name in enumerate(wanted, start=FIRST_PORT):
        addresses[name] = f"{host}:{port}"
        lines += [f"  {name}:", f'    ports: ["{host}:{port}:{PORT}"]']
    # The smallest network has nothing to add.
    return ("\n".join(lines) if wanted else "services: {}") + "\n", addresses


class Containers:
    """Use as an async context manager: leaving it removes everything."""

    publishes = False

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        """Writes the compose files to ``folder``, missing or empty. Raises ConfigError."""
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: choose another folder, or remove it")
        self._manifest, self._folder = manifest, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._project = f"pofl-manifest-{os.getpid()}"
        host = f"127.8.{os.getpid() // 256 % 256}.{os.getpid() % 256}"
        text, self._addresses = override(manifest, host)
        shape = manifest.shape
        (folder / "compose.yml").write_text(compose_file(shape), encoding="utf-8")
        (folder / "published.yml").write_text(text, encoding="utf-8")
        self._env = {**os.environ, "TESTNET_BIND": host, "COMPOSE_PROJECT_NAME": self._project}
        self._command: list[str] = []
        self._layout: Layout | None = None
        self._apart = 0

    async def __aenter__(self) -> Containers:
        if reason := await why_not():
            raise UnavailableError(f"no containers here: {reason}")
        self._command = await command_of()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def accounts(self) -> Mapping[str, bytes]:
        return {m.name: bytes(m.account) for m in self._made.members}

    @property
    def test_set(self) -> Path:
        return self._folder / "requester0" / "data" / "test.npz"

    def task_files(self) -> tuple[Path, Path, Sequence[int]]:
        raise ConfigError(f"the requester in a container publishes her {TASKS} tasks by herself")

    async def start(self) -> None:
        await self._compose("up", "-d", timeout=UP_SECONDS)
        for volume in ("user", "requester0"):
            await self._copy(volume)
        self._layout = load_layout(self._folder / "user")

    def channel(self, name: str) -> aio.Channel:
        folder = self._folder / "user" / "user" / "tls"
        files = TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")
        return connect(self._addresses[name], files, expect_role=self._manifest.role(name), expect_name=name)

    def check(self) -> None:
        """What ends by itself is started again by the engine, as for any user of the compose file."""

    def has_lied(self, liar: Liar) -> bool:
        """No container lies: the reader refuses such manifests."""
        return False

    async def report_leaks(self) -> None:
        """No container leaks: the reader refuses such manifests."""

    async def close(self) -> None:
        if not self._command:
            return
        command, self._command = self._command, []
        logs = self._folder / "logs"
        logs.mkdir(exist_ok=True)
        try:
            for name, _ in self._manifest.processes:
                said = await self._run_all([*self._prefix(command), "logs", "--no-color", name], CALL_SECONDS, check=False)
                (logs / f"{name}.log").write_text(said, encoding="utf-8")
        finally:
            await self._run_all([*self._prefix(command), "--profile", "tools", "down", "-v"], STOP_SECONDS, check=False)
            for number in range(self._apart):
                await self._docker("network", "rm", f"{self._project}_apart{number}", check=False)

    # What is done to it

    async def perturb(self, what: Perturbation) -> Healing:
        ids = {name: await self._container(name) for name in what.who}

        async def each(*words: str) -> None:
            await asyncio.gather(*(self._docker(*words, ids[name]) for name in what.who))

        match what.act:
            case Act.KILL:
                # Told to by name, the engine does not start it again by itself.
                await each("kill", "--signal", "KILL")
                return lambda: each("start")
            case Act.RESTART | Act.OFFLINE:
                await each("stop", "--time", "20")
                return lambda: each("start")
            case Act.PAUSE:
                await each("pause")
                return lambda: each("unpause")
            case Act.DISCONNECT:
                return await self._part(ids)
        raise ConfigError(f"{what.act} cannot be done to containers")

    async def _part(self, ids: Mapping[str, str]) -> Healing:
        """From the others' network to one of their own, where they reach one another by the same names."""
        apart, common = f"{self._project}_apart{self._apart}", f"{self._project}_default"
        self._apart += 1
        await self._docker("network", "create", "--internal", apart)

        async def move(source: str, target: str) -> None:
            for name, container in ids.items():
                await self._docker("network", "disconnect", source, container)
                await self._docker("network", "connect", "--alias", name, target, container)

        await move(common, apart)
        return lambda: move(apart, common)

    # Docker

    @property
    def _made(self) -> Layout:
        if self._layout is None:
            raise ConfigError("the containers have not been started yet")
        return self._layout

    async def _container(self, name: str) -> str:
        labels = (f"com.docker.compose.project={self._project}", f"com.docker.compose.service={name}")
        filters = [word for label in labels for word in ("--filter", f"label={label}")]
        found = (await self._docker("ps", "--all", "--quiet", *filters)).split()
        if len(found) != 1:
            raise UnavailableError(f"there are {len(found)} containers of {name}, one is expected")
        return found[0]

    async def _copy(self, volume: str) -> None:
        """A volume's files, by the image's own Python: nothing else is needed on the engine's side."""
        pack = "import sys, tarfile; tarfile.open(fileobj=sys.stdout.buffer, mode='w|').add('/pofl', arcname='.')"
        data = await _run_bytes([
            "docker", "run", "--rm", "--network", "none", "--user", "0:0", "--entrypoint", "python",
            "--volume", f"{self._project}_{volume}:/pofl:ro", IMAGE, "-I", "-c", pack,
        ], CALL_SECONDS, self._env)  # fmt: skip
        if len(data) > MOST_COPIED:
            raise PoflError(f"the volume {volume} has {len(data)} bytes")
        with tarfile.open(fileobj=io.BytesIO(data)) as packed:
            packed.extractall(self._folder / volume, filter="data")

    def _prefix(self, command: Sequence[str]) -> list[str]:
        files = [word for name in ("compose.yml", "published.yml") for word in ("-f", str((self._folder / name).resolve()))]
        return [*command, *files, "--project-directory", str(ROOT)]

    async def _compose(self, *words: str, timeout: float) -> str:
        return await self._run_all([*self._prefix(self._command), *words], timeout)

    async def _docker(self, *words: str, check: bool = True) -> str:
        return await self._run_all(["docker", *words], CALL_SECONDS, check=check)

    async def _run_all(self, command: Sequence[str], timeout: float, check: bool = True) -> str:
        return await _run(command, timeout, self._env, check)


async def _run(command: Sequence[str], timeout: float, env: Mapping[str, str] | None = None, check: bool = True) -> str:
    return (await _run_bytes(command, timeout, env, check)).decode(errors="replace")


async def _run_bytes(command: Sequence[str], timeout: float, env: Mapping[str, str] | None = None, check: bool = True) -> bytes:
    """What it prints. Raises UnavailableError if it fails, DeadlineError."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=dict(env) if env is not None else None,
    )  # fmt: skip
    words = " ".join(command[:3])
    try:
        out, said = await asyncio.wait_for(process.communicate(), timeout)
    except TimeoutError:
        raise DeadlineError(f"`{words} ...` took longer than {timeout:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if check and process.returncode:
        tail = said.decode(errors="replace").strip()[-400:]
        raise UnavailableError(f"`{words} ...` ended with {process.returncode}: {tail}")
    return out

"""Containers of a testnet, driven through the Docker SDK: started in order of health, looked at, killed, paused, removed.

Only what carries the label of a network's project is ever touched. The SDK blocks: each call runs in a thread, and has an
end. What goes wrong becomes one sentence that says what to do.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import io
import os
import socket
import tarfile
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from core.errors import ConfigError, DeadlineError, NotFoundError, PoflError, UnavailableError
from services.testnet.plan import LABEL, PROCESS, ROLE, WANTED, Container, Plan, options
from services.testnet.watch import Observer

__all__ = ["CALL_TIMEOUT", "Engine", "Seen"]

T = TypeVar("T")
CALL_TIMEOUT: Final = 60
"""Seconds that the engine has for one answer."""
SOCKET: Final = "unix:///var/run/docker.sock"
"""Where an engine listens unless ``DOCKER_HOST`` names another."""
STOP_SECONDS: Final = 20
POLL: Final = 0.5
MOST_BUNDLE: Final = 1 << 20
"""Bytes of the user's bundle: a few certificates and two documents."""
RUN_SECONDS: Final = 20.0
TAIL: Final = 15
ENDED: Final = ("exited", "dead", "restarting")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the engine says of one process's container."""

    process: str
    role: str
    state: str
    """created, running, paused, restarting, exited, dead."""
    health: str
    """starting, healthy, unhealthy; empty where nothing checks it, or not now."""
    status: str
    """For people."""
    wanted: str
    image: str

    @property
    def is_healthy(self) -> bool:
        return self.state == "running" and self.health == "healthy"


class Engine:
    """A connection to the engine of this machine, or of ``DOCKER_HOST``."""

    def __init__(self, client: Any) -> None:
        """``client``: a `docker.DockerClient`."""
        self._client = client

    @classmethod
    async def connect(cls) -> Engine:
        """Raises UnavailableError if no engine answers, or not to this user."""

        def dial() -> Any:
            _knock(os.environ.get("DOCKER_HOST") or SOCKET)
            import docker  # only here: it takes a third of a second to load, and no other command needs it

            client = docker.from_env(timeout=CALL_TIMEOUT)
            client.ping()
            return client

        try:
            return cls(await asyncio.to_thread(dial))
        except Exception as error:  # noqa: BLE001 - the SDK raises what its transport raises
            if _has(error, PermissionError):
                why = "this user may not use the Docker engine: become root, or join the group docker"
            else:
                why = f"no Docker engine answers: start it, or name another by DOCKER_HOST ({_innermost(error)})"
            raise UnavailableError(why) from None

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)

    # Up

    async def check_images(self, plan: Plan) -> dict[str, str]:
        """Id of each image. Raises ConfigError for one that is not there: nothing is ever fetched from a registry."""
        found = {}
        for image in plan.images:
            try:
                found[image] = str((await self._call(f"the image {image}", self._client.images.get, image)).id)
            except NotFoundError:
                raise ConfigError(
                    f"there is no image {image}: build it with `docker compose build`, or name others with --image and "
                    "--train-image"
                ) from None
        return found

    async def check_ports(self, plan: Plan) -> None:
        """That what is to be published can be, where no container of this network has it already. Raises UnavailableError.

        Before anything is made. The engine tells the same, but only when the network's files are there and nodes start.
        """
        there = await self.seen(plan)
        for container in plan.containers:
            found = there.get(container.process)
            if container.published is not None and (found is None or found.state not in ("running", "paused", "restarting")):
                what = f"{container.process}, {plan.settings.bind}:{container.published}"
                try:
                    with socket.create_server((plan.settings.bind, container.published)):
                        pass
                except OSError as error:
                    if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                        raise _translated(what, error) from None

    async def up(self, plan: Plan, observer: Observer, timeout: float) -> None:
        """Start what does not run, until every process is healthy. What is there and as wanted is left as it is.

        What this call made is removed again when an address or the network cannot be had; a process that fails stays, with its
        log. Raises ConfigError, UnavailableError, DeadlineError, PoflError with the end of a log.
        """
        images = await self.check_images(plan)
        end = time.monotonic() + timeout
        there = await self.seen(plan)
        try:
            await self._prepare(plan, observer, end)
            await self._start_in_order(plan, images, observer, end)
        except UnavailableError:
            if not there:
                await self.down(plan, with_volumes=False)
            raise

    async def _prepare(self, plan: Plan, observer: Observer, end: float) -> None:
        """Network and volumes, filled by `init`."""
        labels = {LABEL: plan.settings.project}
        known = await self._call(
            "its networks", lambda: self._client.networks.list(filters={"label": f"{LABEL}={labels[LABEL]}"})
        )
        if not known:
            await self._call(
                f"the network {plan.network}",
                lambda: self._client.networks.create(plan.network, driver="bridge", labels=labels),
            )
        for volume in plan.volumes:
            name = plan.volume(volume)
            await self._call(f"the volume {name}", functools.partial(self._client.volumes.create, name, labels=labels))
        observer.say("making the network's files, or finding them")
        await self._remove(plan, plan.init.process)
        made = await self._create(plan, plan.init)
        await self._call("init", made.start)
        while True:
            await self._call("init", made.reload)
            if made.status in ("exited", "dead"):
                break
            await self._pause(end, "init has not ended")
        code = int(made.attrs["State"]["ExitCode"])
        if code:
            raise PoflError(f"init ended with exit code {code}:\n{await self._tail(plan, plan.init.process)}")

    async def _start_in_order(self, plan: Plan, images: dict[str, str], observer: Observer, end: float) -> None:
        left = list(plan.containers)
        started: dict[str, Container] = {}
        while True:
            seen = await self.seen(plan)
            for container in left + list(started.values()):
                found = seen.get(container.process)
                observer.state(container.process, container.role, "not started" if found is None else found.status)
            for process in started:
                await self._check(plan, seen.get(process), process)
            healthy = {name for name, found in seen.items() if found.is_healthy}
            ready = [c for c in left if all(name in healthy for name, _ in c.needs if name != plan.init.process)]
            for container in ready:
                await self._start(plan, container, seen.get(container.process), images[container.image])
                started[container.process] = container
                left.remove(container)
            if ready:
                observer.say(f"started: {', '.join(c.process for c in ready)}")
                continue
            if not left and healthy >= set(started):
                return
            late = sorted(set(started) - healthy)
            await self._pause(end, f"not healthy: {', '.join(late)}; `pofl testnet logs {late[0] if late else ''}` tells more")

    async def _start(self, plan: Plan, container: Container, found: Seen | None, image: str) -> None:
        wanted = options(plan, container)
        labels = wanted["labels"]
        assert isinstance(labels, dict)
        if found is not None and (found.wanted, found.image) != (labels[WANTED], image):
            await self._remove(plan, container.process)
            found = None
        if found is None:
            made = await self._create(plan, container)
        elif found.state == "running":
            return
        else:
            made = await self._get(plan, container.process)
        is_paused = found is not None and found.state == "paused"
        at = "" if container.published is None else f", {plan.settings.bind}:{container.published}"
        await self._call(f"{container.process}{at}", made.unpause if is_paused else made.start)

    async def _check(self, plan: Plan, found: Seen | None, process: str) -> None:
        """Raises PoflError with the end of its log when a process does not come up."""
        if found is not None and found.state not in ENDED and found.health != "unhealthy":
            return
        how = (
            "is gone"
            if found is None
            else "is not healthy"
            if found.health == "unhealthy"
            else f"does not run ({found.status})"
        )
        tail = "" if found is None else f"; the end of its log:\n{await self._tail(plan, process)}"
        raise PoflError(f"{process} {how}{tail}")

    async def _create(self, plan: Plan, container: Container) -> Any:
        given = options(plan, container)
        if not container.is_init:
            given["network"] = plan.network
            endpoint = self._client.api.create_endpoint_config(aliases=[container.process])
            given["networking_config"] = {plan.network: endpoint}
        return await self._call(container.process, lambda: self._client.containers.create(**given))

    # What runs

    async def seen(self, plan: Plan) -> dict[str, Seen]:
        """Every container of the network but `init`, by the name of its process."""
        listed = await self._call(
            "its containers",
            lambda: self._client.api.containers(all=True, filters={"label": f"{LABEL}={plan.settings.project}"}),
        )
        found = {}
        for item in listed:
            labels, status = item["Labels"], str(item["Status"])
            process = str(labels.get(PROCESS, ""))
            if process and process != plan.init.process:
                found[process] = Seen(
                    process, str(labels.get(ROLE, "")), str(item["State"]), _health(status), status,
                    str(labels.get(WANTED, "")), str(item["ImageID"]),
                )  # fmt: skip
        return found

    async def kill(self, plan: Plan, process: str) -> None:
        """SIGKILL. The engine takes it for a wish and does not start it again. Raises ConfigError if it does not run."""
        await self._call(process, (await self._in(plan, process, "running", "restarting", "paused")).kill)

    async def pause(self, plan: Plan, process: str) -> None:
        """Raises ConfigError if it does not run."""
        await self._call(process, (await self._in(plan, process, "running")).pause)

    async def resume(self, plan: Plan, process: str) -> None:
        """Raises ConfigError if it is not paused."""
        await self._call(process, (await self._in(plan, process, "paused")).unpause)

    async def start(self, plan: Plan, process: str) -> None:
        """Raises ConfigError if it runs, or is paused."""
        await self._call(process, (await self._in(plan, process, "exited", "created", "dead")).start)

    async def _in(self, plan: Plan, process: str, *states: str) -> Any:
        container = await self._get(plan, process)
        if container.status not in states:
            raise ConfigError(f"{process} is {container.status}, it should be {' or '.join(states)}")
        return container

    async def logs(self, plan: Plan, process: str, lines: int) -> str:
        """The last lines. Raises NotFoundError."""
        container = await self._get(plan, process)
        raw: bytes = await self._call(process, lambda: container.logs(tail=lines))
        return raw.decode(errors="replace")

    async def follow(self, plan: Plan, process: str, lines: int) -> AsyncGenerator[str, None]:
        """The last lines, and every one that comes, until the container ends."""
        container = await self._get(plan, process)
        parts = await self._call(process, lambda: container.logs(tail=lines, stream=True, follow=True))
        try:
            while (part := await asyncio.to_thread(next, parts, b"")) != b"":
                yield part.decode(errors="replace")
        finally:
            parts.close()  # ends the thread that waits for the next line

    async def run(self, plan: Plan, process: str, command: list[str], timeout: float = RUN_SECONDS) -> tuple[int, str]:
        """Exit code and output of a command in a process's container.

        Raises DeadlineError: what runs in a container that is paused meanwhile never ends, and the SDK would wait for it.
        """
        container = await self._get(plan, process)
        api = self._client.api
        made = await self._call(process, lambda: api.exec_create(container.id, command))
        parts = await self._call(process, lambda: api.exec_start(made["Id"], stream=True))
        try:
            async with asyncio.timeout(timeout):
                raw = await self._call(process, b"".join, parts)
        except TimeoutError:
            raise DeadlineError(f"{process} has not run {command[0]} within {timeout:g} s") from None
        finally:
            parts.close()  # ends the thread that waits for more
        code = (await self._call(process, lambda: api.exec_inspect(made["Id"])))["ExitCode"]
        return int(code), raw.decode(errors="replace")

    # Down

    async def down(self, plan: Plan, *, with_volumes: bool) -> int:
        """Stop and remove every container and the network, with ``with_volumes`` also what they stored. How many there were."""
        by_label = {"label": f"{LABEL}={plan.settings.project}"}
        containers = await self._call("its containers", lambda: self._client.containers.list(all=True, filters=by_label))
        await asyncio.gather(*(self._end(container) for container in containers))
        for network in await self._call("its networks", lambda: self._client.networks.list(filters=by_label)):
            await self._call(f"the network {plan.network}", network.remove)
        if with_volumes:
            for volume in await self._call("its volumes", lambda: self._client.volumes.list(filters=by_label)):
                await self._call(f"the volume {volume.name}", volume.remove)
        return len(containers)

    async def _end(self, container: Any) -> None:
        name = str(container.name)
        if container.status == "paused":
            await self._call(name, container.unpause)
        if container.status in ("running", "paused", "restarting"):
            await self._call(name, lambda: container.stop(timeout=STOP_SECONDS))
        # With the volume that has no name: the image asks for one at /pofl, and `init` mounts nothing there.
        await self._call(name, lambda: container.remove(force=True, v=True))

    async def _remove(self, plan: Plan, process: str) -> None:
        try:
            found = await self._get(plan, process)
        except NotFoundError:
            return
        await self._end(found)

    # Files

    async def fetch_user(self, plan: Plan, folder: Path) -> None:
        """What one needs to ask the network questions, out of the volume that `init` filled. Raises PoflError."""
        container = await self._get(plan, plan.init.process)

        def read() -> bytes:
            parts, _ = container.get_archive("/bundles/user")
            data = b""
            for part in parts:
                data += part
                if len(data) > MOST_BUNDLE:
                    raise ConfigError(f"the user's bundle has more than {MOST_BUNDLE} bytes")
            return data

        data = await self._call("the user's bundle", read)
        try:
            await asyncio.to_thread(_unpack, data, folder)
        except (tarfile.TarError, OSError) as error:
            raise ConfigError(f"cannot write the user's bundle to {folder}: {error}") from None

    # The SDK

    async def _get(self, plan: Plan, process: str) -> Any:
        """The container of a process. Raises NotFoundError."""
        if process not in {plan.init.process, *(c.process for c in plan.containers)}:
            known = ", ".join(c.process for c in plan.containers)
            raise NotFoundError(f"this network has no process {process!r}; it has {known}")
        labels = [f"{LABEL}={plan.settings.project}", f"{PROCESS}={process}"]  # a name alone may be somebody else's
        found = await self._call(
            process, lambda: self._client.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
        )
        if not found:
            raise NotFoundError(f"{process} has no container now: `pofl testnet up --docker` makes it")
        return found[0]

    async def _tail(self, plan: Plan, process: str) -> str:
        return (await self.logs(plan, process, TAIL)).rstrip()

    @staticmethod
    async def _pause(end: float, what: str) -> None:
        if time.monotonic() > end:
            raise DeadlineError(f"the network is not up in time; {what}")
        await asyncio.sleep(POLL)

    @staticmethod
    async def _call(what: str, call: Callable[..., T], *arguments: object) -> T:
        """Raises NotFoundError, UnavailableError, with the engine's own words, and ConfigError as ``call`` does."""
        try:
            return await asyncio.to_thread(call, *arguments)
        except PoflError:
            raise
        except Exception as error:  # noqa: BLE001 - the SDK raises what its transport raises
            raise _translated(what, error) from None


def _translated(what: str, error: Exception) -> PoflError:
    said = str(getattr(error, "explanation", "") or _innermost(error)).strip()
    if getattr(error, "status_code", None) == 404:
        return NotFoundError(f"the engine does not know {what}: {said}")
    low = said.lower()
    if "already allocated" in low or "address already in use" in low:
        return UnavailableError(f"{what}: the port is taken: stop what uses it, or choose another address with --bind")
    if "cannot assign requested address" in low:
        return UnavailableError(f"{what}: this machine does not have the address: choose another with --bind")
    if getattr(error, "status_code", None) is None:
        return UnavailableError(f"the Docker engine does not answer any more ({said})")
    return UnavailableError(f"the Docker engine refuses {what}: {said}")


def _knock(url: str) -> None:
    """Whether anybody listens there; the SDK leaves its socket open when nobody does. Raises OSError."""
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(CALL_TIMEOUT)
            knocking.connect(url.removeprefix("unix://"))


def _has(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether it, or what it was raised from, is of this kind; transports wrap errors in arguments too."""
    found, depth = error, 0
    while found is not None and depth < 8:
        if isinstance(found, kind) or any(isinstance(a, BaseException) and _has(a, kind) for a in found.args):
            return True
        found, depth = found.__cause__ or found.__context__, depth + 1
    return False


def _innermost(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or str(error)


def _health(status: str) -> str:
    """Of ``Up 3 seconds (healthy)``; while it starts: ``(health: starting)``."""
    _, _, inside = status.rpartition("(")
    word = inside.rstrip(")").removeprefix("health: ")
    return word if word in ("starting", "healthy", "unhealthy") else ""


def _unpack(data: bytes, folder: Path) -> None:
    """The archive's files without the folder at its top. Raises TarError, OSError."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive.getmembers():
            inner = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if inner.parts:
                member.name = str(inner)
                archive.extract(member, folder, set_attrs=True, filter="data")

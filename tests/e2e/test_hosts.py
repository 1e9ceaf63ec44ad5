"""A network on separate hosts: network namespaces with addresses and delay of their own, a bundle each, and late comers.

Everything is done with the command, as docs/deploy.md has it, on the host where its owner would do it: files of one host are
read by nobody else but the operator, who made them, and the two who carry an invitation over.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from services.testnet.layout import Layout, load_layout
from tests.namespaces import Namespaces, why_not

ROOT: Final = Path(__file__).resolve().parents[2]
COMMAND: Final = (sys.executable, "-m", "services.cli.main")
BIN: Final = Path(sys.executable).parent
# `start` looks for pofl on the path.
ENV: Final = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "PATH": f"{BIN}:{os.environ['PATH']}"}
DELAY_MS: Final = 15
NAMES: Final = ("alpha", "beta", "gamma", "delta", "epsilon", "operator", "late-node", "late-pool", "late-requester")
"""Hosts, by the number of their namespace."""
PROCESSES: Final = {
    "alpha": ("node0", "platform0"), "beta": ("node1", "requester0"), "gamma": ("node2", "provider0"),
    "delta": ("pool0",), "epsilon": ("pool0-miner0",),
}  # fmt: skip
PORT: Final = 7000
START_ORDER: Final = ("epsilon", "beta", "delta", "alpha", "gamma")
"""Miners before pools, pools before nodes: hosts may start in any order."""
PATIENT: Final = ("--clock-seconds", "90")
"""On a machine that runs all the hosts at once a single block can be late."""
RUNNER: Final = "import sys; {patch}; from services.cli.main import main; sys.exit(main())"

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]


class Hosts:
    """The hosts of one run, what was started on them, and the command on each."""

    def __init__(self, spaces: Namespaces, folder: Path) -> None:
        self.spaces = spaces
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @staticmethod
    def address(host: str) -> str:
        return Namespaces.peer_host(NAMES.index(host))

    def run(self, host: str, *words: str, code: int = 0, seconds: float = 300) -> str:
        """A command there, and what it printed; it must end with ``code``."""
        before = self.spaces.run_in(NAMES.index(host))
        ended = subprocess.run(
            [*before, *words], cwd=self.folder, env=ENV, capture_output=True, text=True, timeout=seconds,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == code, (host, words, ended.returncode, ended.stdout, ended.stderr)
        return ended.stdout

    def pofl(self, host: str, *words: str, code: int = 0) -> str:
        return self.run(host, *COMMAND, *words, code=code)

    def ask(self, *words: str) -> Any:
        """The network, from the operator's host, as a user."""
        return json.loads(self.pofl("operator", *words, "--net", "net/user", "--json"))

    def start(self, host: str, *words: str, name: str = "") -> None:
        """Something that runs on; it ends with this process, whatever ends that."""
        before = self.spaces.run_in(NAMES.index(host))
        with (self.folder / f"{name or host}.log").open("ab") as log:
            self.running[name or host] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *before, *words],
                cwd=self.folder, env=ENV, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def check(self) -> None:
        for name, process in self.running.items():
            assert process.poll() is None, f"{name} ended: {(self.folder / f'{name}.log').read_text()[-2000:]}"

    def until(self, what: str, is_so: Callable[[], Any], seconds: float = 300) -> Any:
        """What ``is_so`` says, once it says something; a command that fails says nothing yet."""
        end, last = time.monotonic() + seconds, "nothing"
        while time.monotonic() < end:
            self.check()
            try:
                if found := is_so():
                    return found
            except AssertionError as error:
                last = str(error)[:2000]
            time.sleep(1)
        pytest.fail(f"not within {seconds:.0f} s: {what}; the last failure: {last}; the logs are in {self.folder}")

    def stop(self, name: str) -> int:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def close(self) -> None:
        """Whatever happened before: afterwards nothing of it runs."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.running.clear()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A network of eight processes on five hosts: `init`, then `start` on each."""
    if reason := why_not(watch=False):
        pytest.skip(reason)
    if shutil.which("setpriv") is None:
        pytest.skip("the tool `setpriv` (util-linux) is not installed")
    folder = tmp_path_factory.mktemp("hosts")
    with Namespaces(len(NAMES), watch=False) as spaces:
        made = Hosts(spaces, folder)
        how = spaces.delay(DELAY_MS, 3)
        sys.stdout.write(f"\ndelay: {how or 'none, this machine has nothing for it'}\n")
        if how:
            pinged = made.run("alpha", sys.executable, "-c", PING.format(there=made.address("beta")))
            assert float(pinged) >= 1.5 * DELAY_MS, f"a connection takes {pinged} ms"
        lines = [
            f'[[host]]\nname = "{name}"\naddress = "{made.address(name)}"\nlisten = "{made.address(name)}"\n'
            f"processes = {json.dumps(processes)}\n"
            for name, processes in PROCESSES.items()
        ]
        (folder / "hosts.toml").write_text("\n".join(lines))
        shape = ("--nodes", "3", "--pools", "1", "--miners", "1")
        made.pofl("operator", "testnet", "init", "--hosts", "hosts.toml", "--out", "net", *shape)
        try:
            for name in START_ORDER:
                made.start(name, f"net/{name}/start")
            yield made
        finally:
            made.close()
    listed = subprocess.run(["ip", "-o", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(spaces.name(i) in listed for i in range(len(NAMES)))


# From a host to a closed port of another: how long the refusal takes is one way and back.
PING: Final = """
import socket, time
best = 1e9
for _ in range(3):
    began = time.monotonic()
    assert socket.socket().connect_ex(("{there}", 9)) == 111
    best = min(best, time.monotonic() - began)
print(1000 * best)
"""


@pytest.fixture(scope="module")
def layout(hosts: Hosts) -> Layout:
    return load_layout(hosts.folder / "net" / "user")


def members_online(hosts: Hosts, pool: str) -> int:
    return sum(bool(member["is_online"]) for member in hosts.ask("pool", "members", "--pool", f"{pool}:{PORT}")["members"])


def won(hosts: Hosts, publish: Callable[[], str]) -> Any:
    """A task that was won. On a machine that runs all the hosts at once, windows can close before the slowest is ready: then
    the task ends void, as it should, and the requester publishes it again."""
    for _ in range(4):
        task_id = publish()

        def ended(task_id: str = task_id) -> Any:
            task = hosts.ask("task", "show", task_id)
            return task if task["phase"] in ("won", "void") else None

        task = hosts.until("the task is over", ended)
        if task["phase"] == "won":
            return task
        sys.stdout.write(f"\nvoid: {hosts.pofl('operator', 'task', 'show', task_id, '--net', 'net/user')}\n")
    pytest.fail("four tasks ended void")


def identity(block: Any) -> Any:
    """What makes two blocks the same one, and the states after them; certificates may differ."""
    return block["header"], block["state_root"]


def submit(hosts: Hosts, host: str, requester: str, rows: str, reward: int) -> str:
    """By the owner of the requester at this address, on her own host, with a user's certificate that she was given."""
    data = hosts.folder / rows
    words = (
        "task", "submit", "--test", str(data / "test.npz"), "--practice", str(data / "practice.npz"), "--reward", str(reward),
        "--requester", requester, "--net", "net/user", "--json",
    )  # fmt: skip
    found: str = json.loads(hosts.pofl(host, *words))["task_id"]
    return found


def test_a_block_is_mined_between_hosts(hosts: Hosts, layout: Layout) -> None:
    assert {m.name: m.host for m in layout.members} == {p: host for host, names in PROCESSES.items() for p in names}
    hosts.until("three nodes make blocks", lambda: hosts.ask("chain", "tip")["height"] >= 2)
    hosts.until("the miner is a member", lambda: members_online(hosts, hosts.address("delta")) == 1)
    task = won(hosts, lambda: submit(hosts, "beta", layout.of("requester")[0].listen, "net/beta/data", 1_000_000))
    height = task["ended_height"]
    blocks = {}
    for host in ("alpha", "beta", "gamma"):
        seen = hosts.until(
            f"{host} has the block",
            lambda host=host: json.loads(  # type: ignore[misc]
                hosts.pofl(
                    "operator", "chain", "show", str(height), "--node", f"{hosts.address(host)}:{PORT}",
                    "--tls", "net/user/user/tls", "--json",
                )
            ),
        )  # fmt: skip
        blocks[host] = identity(seen)
    assert blocks["alpha"] == blocks["beta"] == blocks["gamma"], blocks
    told = hosts.ask("explain", str(height))
    assert told["verdicts"], told


def test_the_doctor_finds_every_host_well(hosts: Hosts) -> None:
    for host in PROCESSES:
        said = hosts.pofl(host, "doctor", f"net/{host}", *PATIENT)
        assert "nothing is wrong" in said, said
        assert "WRONG" not in said
        for process in PROCESSES[host]:
            assert re.search(rf"ok +{process}: own port: \S+/{process} answers, same chain and release", said), said
        assert re.search(r"ok +\S+'s host: clock: -?\d+ ms after", said), said


def test_a_node_a_pool_and_a_requester_join_later(hosts: Hosts, layout: Layout) -> None:
    accounts = {}
    for role, host in (("node", "late-node"), ("pool", "late-pool"), ("requester", "late-requester")):
        said = hosts.pofl(
            "operator", "testnet", "invite", host, "--net", "net/operator", "--role", role, "--name", host,
            "--listen", f"{hosts.address(host)}:{PORT}",
        )  # fmt: skip
        accounts[role] = re.search(r"account ([0-9a-f]{64})", said)[1]  # type: ignore[index]
    hosts.pofl("operator", "testnet", "invite", "late-miner", "--net", "net/operator", "--name", "late-miner")
    key = "net/user/user/account.key"
    for role, amount in (("pool", 200_000), ("requester", 700_000)):
        hosts.pofl("operator", "transfer", accounts[role], str(amount), "--key", key, "--net", "net/user")
    for host in ("late-requester", "late-pool", "late-node"):
        hosts.start(host, f"{host}/start")
    rows = hosts.folder / "net" / "epsilon" / "data" / "pool0-miner0.npz"
    hosts.start(
        "late-pool", *COMMAND, "run", "miner", "--home", "late-miner", "--pool", f"{hosts.address('late-pool')}:{PORT}",
        "--data", str(rows), name="late-miner",
    )  # fmt: skip

    one = ("--node", f"{hosts.address('late-node')}:{PORT}", "--tls", "net/user/user/tls", "--json")
    tip = hosts.ask("chain", "tip")["height"]
    hosts.until("the late node caught up", lambda: json.loads(hosts.pofl("operator", "chain", "tip", *one))["height"] >= tip)
    for height in (1, tip // 2, tip):
        served = json.loads(hosts.pofl("operator", "chain", "show", str(height), *one))
        ours = hosts.ask("chain", "show", str(height))
        assert identity(served) == identity(ours)

    hosts.until("the late pool has its miner", lambda: members_online(hosts, hosts.address("late-pool")) == 1)
    own = hosts.folder / "late-data"  # hers: nobody else has it
    shutil.copytree(hosts.folder / "net" / "beta" / "data", own)
    hers = f"{hosts.address('late-requester')}:{PORT}"
    look = ("doctor", "late-requester", "--clock-seconds", "0")
    hosts.until("the late requester answers", lambda: hosts.pofl("late-requester", *look))
    task = won(hosts, lambda: submit(hosts, "late-requester", hers, "late-data", 100_000))
    assert task["requester"] == accounts["requester"]
    entered = {entry["pool"]: entry for entry in task["entries"]}
    assert entered[accounts["pool"]]["bond"] > 0, entered
    assert {layout.member("pool0").account.hex(), accounts["pool"]} == set(entered)
    fetched = hosts.pofl(
        "late-requester", "model", "fetch", "--task", task["task_id"], "--out", "won.pofl", "--net", "net/user",
        "--requester", hers,
    )  # fmt: skip
    assert (hosts.folder / "won.pofl").is_file(), fetched
    height = task["ended_height"]
    served = hosts.until(
        "the late node has her block", lambda: json.loads(hosts.pofl("operator", "chain", "show", str(height), *one))
    )
    assert identity(served) == identity(hosts.ask("chain", "show", str(height)))
    claims = {pool[:8]: entry["correct"] for pool, entry in entered.items()}
    sys.stdout.write(f"\nclaims of {task['spec']['samples']} rows: {claims}; late pool is {accounts['pool'][:8]}\n")
    for host in ("late-node", "late-pool", "late-requester"):
        assert "nothing is wrong" in hosts.pofl(host, "doctor", host, *PATIENT)


def test_the_doctor_names_each_fault_on_a_live_host(hosts: Hosts, layout: Layout) -> None:
    """On the late node's host, with copies of its files that are wrong in one way each."""

    def sick(name: str, *changes: tuple[str, str]) -> str:
        shutil.copytree(hosts.folder / "late-node", hosts.folder / name, ignore=shutil.ignore_patterns("data", "logs"))
        for file, old, new in ((f, *change.split(" => ")) for f, change in changes):
            path = hosts.folder / name / file
            text = path.read_text()
            assert old in text, text
            path.write_text(text.replace(old, new))
        return name

    def wrong(said: str) -> str:
        return "\n".join(line for line in said.splitlines() if line.startswith(("WRONG", "      ->")))

    here, alpha, delta = hosts.address("late-node"), hosts.address("alpha"), hosts.address("delta")
    nodes = [hosts.address(host) for host in ("alpha", "beta", "gamma")]
    several = sick(
        "several",
        ("config.toml", f'listen = "{here}:{PORT}" => listen = "0.0.0.0:{PORT}"'),
        ("config.toml", f'"{nodes[1]}:{PORT}" => "{nodes[1]}:7900"'),
        ("config.toml", f'"{nodes[2]}:{PORT}" => "{delta}:{PORT}"'),
    )
    said = wrong(hosts.pofl("late-node", "doctor", several, code=5))
    assert re.search(rf"0\.0\.0\.0:{PORT}.*nobody's address", said), said
    assert f"node {nodes[1]}:7900: the port is closed" in said, said
    assert f"node {delta}:{PORT}: there is pool pool0, not a node" in said, said
    assert f"node {alpha}:{PORT}" not in said, said

    made = layout.genesis.time_ms
    other = sick("other", ("genesis.json", f'"time_ms": {made} => "time_ms": {made + 1}'))
    said = wrong(hosts.pofl("late-node", "doctor", other, "--clock-seconds", "0", code=5))
    assert said.count("genesis hash") >= 3, said
    assert "find out whose genesis.json is right" in said

    def patched(patch: str, *words: str) -> str:
        return wrong(hosts.run("late-node", sys.executable, "-c", RUNNER.format(patch=patch), "doctor", *words, code=5))

    newer = "import services.cli.doctor_peers as d; d.PROTOCOL_VERSION += 1"
    said = patched(newer, "late-node", "--clock-seconds", "0")
    assert said.count("protocol version") >= 3, said
    assert "install the same release of pofl on both hosts" in said

    said = patched("import time; right = time.time_ns; time.time_ns = lambda: right() - 3600 * 10**9", "late-node")
    assert re.search(r"3[3-6]\d\d\.\d s behind the chain's time", said), said
    assert "NTP" in said

    assert hosts.stop("beta") == 0
    said = wrong(hosts.pofl("late-node", "doctor", "late-node", code=5))
    assert f"node {nodes[1]}:{PORT}: the port is closed" in said, said


def test_stopping_leaves_nothing_running(hosts: Hosts) -> None:
    for name in list(hosts.running):
        code = hosts.stop(name)
        assert code == 0, (name, code)
    left = {NAMES[i]: hosts.spaces.inside(i) for i in range(len(NAMES))}
    delays = {process.pid for process in hosts.spaces._delays}
    assert all(set(pids) <= delays for pids in left.values()), left

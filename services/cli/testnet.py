"""``pofl testnet``: a whole network on this machine."""

from __future__ import annotations

import asyncio
import signal
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from core.errors import ConfigError
from services.cli import pid_file, testnet_control
from services.cli.connection import TESTNETS, NetOption, newest_testnet
from services.cli.errors import runs
from services.cli.output import MOST_NUMBER, JsonOption, console, emit_json
from services.cli.testnet_docker import Wishes, up_in_containers
from services.testnet.bundles import check_shape, is_made, make_bundles
from services.testnet.compose import TASKS, compose_file
from services.testnet.data import OwnData
from services.testnet.invite import ROLES, default_name
from services.testnet.invite import invite as make_invitation
from services.testnet.layout import Layout, Shape, load_layout, make_layout
from services.testnet.places import containers, on_hosts, read_hosts
from services.testnet.plan import load_settings
from services.testnet.runner import Report, run_testnet
from services.testnet.targets import container_targets, layout_targets
from services.testnet.view import LiveView, PlainView, report_table

__all__ = ["app"]

app = typer.Typer(help="A whole network on this machine: real processes, real blocks.", no_args_is_help=True)

START_SECONDS: Final = 90.0
BLOCK_SECONDS: Final = 150.0

NodesOption = Annotated[int, typer.Option(help="Full nodes, all validators.")]
PoolsOption = Annotated[int, typer.Option(help="Mining pools.")]
MinersOption = Annotated[int, typer.Option(help="Miners in each pool.")]
RewardOption = Annotated[int, typer.Option(min=1, max=MOST_NUMBER, help="Reward of each task.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DATA", help="Learn these data: a descriptor, what has one beside it, or an .npz with x and y."
    ),
]
DescriptorOption = Annotated[
    Path | None, typer.Option("--descriptor", metavar="FILE", help="Descriptor of --data, where it does not lie beside them.")
]
SplitOption = Annotated[
    str, typer.Option("--split", metavar="RULE", help="How miners share --data: even, dirichlet:ALPHA, or key.")
]
RowsOption = Annotated[int, typer.Option("--rows", min=0, help="Of --data so many rows, drawn at random; 0: all.")]
HiddenOption = Annotated[str, typer.Option("--hidden", help="With --data: widths of the hidden layers, like 16,16.")]


@app.command()
@runs
async def init(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; must be empty or missing.")],
    nodes: NodesOption = 4, pools: PoolsOption = 2, miners: MinersOption = 3, reward: RewardOption = 1_000_000,
    tasks: Annotated[
        int, typer.Option(help="Tasks that the requester publishes by itself; 0: whoever runs the testnet does.")
    ] = 0,
    data: DataOption = None, descriptor: DescriptorOption = None, by: SplitOption = "even", rows: RowsOption = 6000,
    hidden: HiddenOption = "16",
    compose: Annotated[bool, typer.Option("--compose", help="One bundle for each process, for containers.")] = False,
    hosts: Annotated[
        Path | None, typer.Option("--hosts", metavar="FILE", help="One bundle for each host of this TOML file.")
    ] = None,
    owner: Annotated[
        int | None, typer.Option(min=0, help="With --compose or --hosts, as root: number of the user who gets the bundles.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="With --compose or --hosts: do nothing where a network is.")] = False,
) -> None:  # fmt: skip
    """Write the files of a testnet and start nothing: authority, certificates, keys, genesis, data, configurations.

    For one machine all lies in DIR. With --hosts (docs/deploy.md) or --compose there is a folder for each host or container
    with what it needs and nothing else, `user` for who asks questions, and `operator` with the network's authority.

    Example: pofl testnet init --out net && pofl run node --config net/node0/config.toml

    Example: pofl testnet init --hosts hosts.toml --out net --tasks 900
    """
    shape, own = Shape(nodes, pools, miners, tasks, reward), _own(data, descriptor, by, rows, hidden)
    if compose and hosts is not None:
        raise ConfigError("--compose and --hosts exclude one another")
    if not compose and hosts is None:
        if owner is not None or once:
            raise ConfigError("--owner and --once go with --compose or --hosts")
        layout = make_layout(out, shape, data=own)
        console.print(f"{out}: {len(layout.members)} processes, chain {layout.genesis.chain_id.hex()[:16]}")
        console.print(f"start all of them: pofl testnet up --dir {out}")
        console.print(f"or one:            pofl run node --config {out}/node0/config.toml")
        return
    if once and is_made(out):
        check_shape(out, shape)
        console.print(f"{out} holds a network: left as it is", highlight=False)
        return
    places = containers if hosts is None else on_hosts(read_hosts(hosts))
    layout = make_bundles(out, shape, places, own, owner)
    bundles = list(dict.fromkeys(m.host for m in layout.members))
    console.print(f"{out}: {len(layout.members)} processes in {len(bundles)} bundles", highlight=False)
    console.print(f"chain {layout.genesis.chain_id.hex()[:16]}", highlight=False)
    if hosts is not None:
        console.print(f"bring each bundle to its host and run it there: pofl join {bundles[0]}", highlight=False)
        console.print(f"ask the network from here: pofl chain tip --net {out}/user", highlight=False)


@app.command("compose-file")
@runs
async def compose(
    nodes: NodesOption = 4, pools: PoolsOption = 2, miners: MinersOption = 3, reward: RewardOption = 1_000_000,
    tasks: Annotated[int, typer.Option(help="Tasks that the requester publishes, one after the other.")] = TASKS,
    targets: Annotated[
        bool, typer.Option("--targets", help="Print deploy/monitoring/targets/compose.json instead: what Prometheus looks at.")
    ] = False,
) -> None:  # fmt: skip
    """Print the compose file of a testnet of this shape. The project's own docker-compose.yml is the default one.

    Example: pofl testnet compose-file --nodes 7 --pools 3 > docker-compose.yml
    """
    shape = Shape(nodes, pools, miners, tasks, reward)
    typer.echo(container_targets(shape) if targets else compose_file(shape), nl=False)


@app.command()
@runs
async def targets(net: NetOption = None) -> None:
    """Print a testnet's metrics addresses as Prometheus reads them from a file (file_sd_configs).

    Example: pofl testnet targets > deploy/monitoring/targets/testnet.json
    """
    typer.echo(layout_targets(load_layout(net or newest_testnet()).members), nl=False)


@app.command()
@runs
async def up(
    blocks: Annotated[int, typer.Option(min=0, help="Stop after so many work blocks; 0: run until Ctrl-C.")] = 0,
    nodes: NodesOption = 4, pools: PoolsOption = 2, miners: MinersOption = 3, reward: RewardOption = 1_000_000,
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="A testnet from `init`, or where to make one.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0, help="Give up after so many seconds; 0: 90 and 150 for each block.")
    ] = 0.0,
    data: DataOption = None, descriptor: DescriptorOption = None, by: SplitOption = "even", rows: RowsOption = 6000,
    hidden: HiddenOption = "16",
    docker: Annotated[bool, typer.Option("--docker", help="In containers, which run on when this command has ended.")] = False,
    bind: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="With --docker: where ports 7100 to 7102 are published; default 127.0.0.1."),
    ] = None,
    image: Annotated[str | None, typer.Option(help="With --docker: image of the roles that do not train.")] = None,
    train_image: Annotated[str | None, typer.Option(help="With --docker: image of pools and miners.")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run a testnet in the foreground, show what happens, and check it.

    Exits with 0 only if the work blocks are final on all nodes with equal hashes and state roots, and every winning model
    scores what its block header says. Ctrl-C, SIGTERM and the end of the terminal stop every process.

    Without --data the tasks are about handwritten digits. With it a fifth of the rows is the requester's secret test set (at
    most 400), a tenth public practice, a tenth for sale, and the miners share the others.

    With --docker it is the network of docker-compose.yml: this command ends when all containers are healthy and the work
    blocks final, and they run on until `pofl testnet down`. The requester publishes tasks one after the other.

    Example: pofl testnet up --blocks 3

    Example: pofl testnet up --blocks 1 --data parkinsons.toml --split key

    Example: pofl testnet up --docker --blocks 1
    """
    own = _own(data, descriptor, by, rows, hidden)
    if docker:
        if own is not None:
            raise ConfigError("--data goes with processes: containers learn the digits")
        wishes = Wishes(Shape(nodes, pools, miners, reward=reward), bind, image, train_image)
        await up_in_containers(folder or _new(), wishes, blocks, timeout, BLOCK_SECONDS, as_json=as_json)
        return
    if used := [name for name, value in {"bind": bind, "image": image, "train-image": train_image}.items() if value]:
        raise ConfigError(f"--{used[0]} goes with --docker")
    layout = _layout(folder, Shape(nodes, pools, miners, tasks=0, reward=reward), own)
    limit = timeout or START_SECONDS + BLOCK_SECONDS * blocks
    quiet = as_json
    view = LiveView(console) if console.is_terminal and not quiet else PlainView(console)
    if not quiet:
        console.print(f"{len(layout.members)} processes; data and logs in {layout.folder}", highlight=False)
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    taken = f"a testnet already runs from {layout.folder}: stop it with `pofl testnet down --net {layout.folder}`"
    with pid_file.held(layout.folder, taken):
        try:
            with view:
                report = await run_testnet(layout, blocks, _Silent() if quiet else view, limit)
        except asyncio.CancelledError:
            if not quiet:
                console.print("stopped; no process is left", highlight=False)
            raise SystemExit(130 if blocks else 0) from None
    _tell(report, layout, as_json)
    if report.problems:
        raise SystemExit(5)


@app.command()
@runs
async def invite(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must be missing or empty.")],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the newcomer: lower-case letters, digits, hyphens; default: guest0, or ROLE-guest0."),
    ] = None,
    role: Annotated[str, typer.Option(help=f"One of {', '.join(ROLES)}.")] = "miner",
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the newcomer, if no miner, will be reached; it takes four ports from there on. Default: free ports of "
            "this machine.",
        ),
    ] = None,
    net: NetOption = None,
) -> None:
    """Write what a newcomer needs to join a network that runs: certificate, private key, account, genesis document.

    Give the folder to whoever runs it; it holds secrets. Only who has the network's authority (the folder `ca`) can invite.
    For all but a miner it is a bundle: `pofl join DIR` runs it, `pofl doctor DIR` looks what is in its way. Its account is
    empty: `pofl transfer` pays a pool its bonds, a requester her bonds and rewards. A node follows the chain at once;
    docs/validators.md says how it comes to vote.

    Example: pofl testnet invite miner && pofl run miner --home miner --pool 127.0.0.1:20016 --data share.npz

    Example: pofl testnet invite late --role pool --listen 192.0.2.9:7000 --net net/operator && pofl join late
    """
    layout = load_layout(net or newest_testnet())
    chosen = name or default_name(role)
    key = make_invitation(layout, out, chosen, role, listen)
    console.print(f"{out}: an invitation for {chosen}, account {key.public_key.hex()}", highlight=False)
    if role != "miner":
        console.print(f"start it: pofl join {out}", highlight=False)
        return
    for pool in layout.of("pool"):
        console.print(f"join {pool.name}: pofl run miner --home {out} --pool {pool.listen} --data DATA", highlight=False)


testnet_control.register(app)


class _Silent:
    def state(self, name: str, role: str, text: str) -> None: ...

    def say(self, line: str) -> None: ...


def _own(data: Path | None, descriptor: Path | None, by: str, rows: int, hidden: str) -> OwnData | None:
    if data is None:
        if descriptor is not None:
            raise ConfigError("--descriptor describes --data, and that is not given")
        return None
    try:
        widths = tuple(int(width) for width in hidden.split(",") if width.strip())
    except ValueError:
        raise ConfigError(f"--hidden is {hidden!r}: it must be whole numbers between commas") from None
    return OwnData(data, descriptor, by, rows, widths)


def _new() -> Path:
    return TESTNETS / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")


def _layout(folder: Path | None, shape: Shape, own: OwnData | None) -> Layout:
    if folder is not None and load_settings(folder) is not None:
        raise ConfigError(f"{folder} is a testnet in containers: start it with --docker, or name another --dir")
    if folder is not None and (folder / "testnet.json").exists():
        if own is not None:
            raise ConfigError(f"{folder} is a testnet with data of its own: leave out --data, or name another --dir")
        layout = load_layout(folder)
        if not layout.has_processes:
            raise ConfigError(
                f"{folder} has no files of processes: they run elsewhere. Start them there: `pofl join BUNDLE` on each host, "
                "or `docker compose up`"
            )
        return layout
    return make_layout(folder or _new(), shape, data=own)


def _tell(report: Report, layout: Layout, as_json: bool) -> None:
    if as_json:
        emit_json(report)
        return
    console.print(report_table(report))
    nodes = len(layout.of("node"))
    for problem in report.problems:
        console.print(f"problem: {problem}", highlight=False)
    if not report.problems:
        count = len(report.blocks)
        console.print(
            f"{count} work block{' is' if count == 1 else 's are'} final on all {nodes} nodes with equal hashes and state "
            f"roots, and every model scores what its header says",
            highlight=False,
        )
    console.print(
        f"nodes ready after {report.ready_seconds:.1f} s, first work block after {report.first_block_seconds:.1f} s, "
        f"{report.seconds:.1f} s in all; {report.void_tasks} void tasks; supply {report.supply}, burned {report.burned}",
        highlight=False,
    )
    console.print(f"data and logs: {layout.folder}", highlight=False)

"""``pofl task``: publish learning tasks and follow them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from core.chain.transaction import MAX_CUTS, Activation
from core.errors import ConfigError, InputError, NotFoundError
from core.ids import Amount, TaskId, short
from core.verification.regression import MICRO, cuts_to_micro
from services.cli.connection import Connection, NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import MOST_NUMBER, JsonOption, console, emit_json, instant, table
from services.rpc.task_client import RequesterClient
from services.rpc.views import TaskPhase, TaskView

__all__ = [
    "all_tasks", "app", "cuts_in_words", "ending_in_words", "find_task", "find_task_id", "leak_in_words", "parse_task_id",
]  # fmt: skip

app = typer.Typer(help="Publish learning tasks and follow them.", no_args_is_help=True)

RequesterOption = Annotated[
    str | None, typer.Option("--requester", metavar="HOST:PORT", help="The requester's process; default: the testnet's.")
]


PAGE = 1000


def parse_task_id(text: str) -> TaskId:
    """A task id from its hex digits. Raises ConfigError."""
    value = _from_hex(text)
    if len(value) != 32:
        raise ConfigError(f"{text!r} is no task id: 64 hex digits, as `pofl task list --json` prints them")
    return TaskId(value)


async def find_task(connection: Connection, text: str) -> TaskView:
    """The task whose id is ``text`` or begins with it, 8 hex digits at least, as tables print them.

    Raises:
        ConfigError: no beginning of an id, or of more than one task's.
        NotFoundError: no such task.
    """
    if len(_from_hex(text)) == 32:
        return await connection.chain.task(parse_task_id(text))
    digits = text.lower()
    if len(digits) < 8 or not _from_hex(digits + "0" * (len(digits) % 2)):
        raise ConfigError(
            f"{text!r} is no task id: 64 hex digits, or the first 8 or more of them as `pofl task list` prints them"
        )
    found = [task async for task in all_tasks(connection) if task.task_id.hex().startswith(digits)]
    if not found:
        raise NotFoundError(f"no task on this chain has an id that begins with {digits}: see `pofl task list`")
    if len(found) > 1:
        raise ConfigError(f"{len(found)} tasks have ids that begin with {digits}: give more digits")
    return found[0]


async def find_task_id(connection: Connection, text: str) -> TaskId:
    """As find_task; a whole id is taken as it is, no node is asked for it."""
    return parse_task_id(text) if len(_from_hex(text)) == 32 else (await find_task(connection, text)).task_id


async def all_tasks(connection: Connection) -> AsyncIterator[TaskView]:
    """Every task on the chain, page by page."""
    after = b""
    while True:
        page = await connection.chain.tasks((), PAGE, after)
        for task in page:
            yield task
        if len(page) < PAGE:
            return
        after = page[-1].task_id


def ending_in_words(task: TaskView) -> str:
    """Why a task that is over ended as it did, as far as its own record says."""
    if task.phase is TaskPhase.WON:
        return f"won at height {task.ended_height}"
    if not task.entries:
        why = "no pool entered"
    elif not any(entry.model_commitment for entry in task.entries):
        why = "no pool that entered committed a model, their logs say why"
    elif all(entry.correct is None for entry in task.entries):
        why = "no pool that committed a model claimed an accuracy"
    else:
        why = f"no claim stood, `pofl explain {task.ended_height}` tells more"
    return f"void at height {task.ended_height}, {why}"


def leak_in_words(leak_bits: int, features: int) -> str:
    """What the pools of a task together may learn of one test row (threat model, "What leaks")."""
    share = "they can reconstruct the row" if leak_bits >= 8 * features else "not enough to reconstruct the row"
    return f"{leak_bits}: so many bits may the pools together learn of a test row, which has {8 * features}: {share}"


def cuts_in_words(cuts_micro: tuple[int, ...]) -> str:
    """The buckets of a regression, in the targets' unit."""
    named = [f"{cut / MICRO:.10g}" for cut in cuts_micro]
    shown = named if len(named) <= 12 else [*named[:6], "…", *named[-5:]]
    return f"right in one of {len(named) + 1} buckets, cut at {', '.join(shown)}"


def _cuts(text: str) -> tuple[int, ...]:
    """Cut points of an option. Raises ConfigError."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
        return cuts_to_micro(np.array(values)) if values else ()
    except ValueError:
        raise ConfigError(f"--cuts is {text!r}: it must be numbers between commas") from None
    except InputError as error:
        raise ConfigError(f"--cuts: {error.message}") from None


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


@app.command()
@runs
async def submit(
    test_set: Annotated[
        Path, typer.Option("--test", help="Secret test set on the requester's machine: npz with x and y, or a descriptor.")
    ],
    practice_set: Annotated[Path, typer.Option("--practice", help="Public practice set, same form.")],
    reward: Annotated[int, typer.Option(min=1, max=MOST_NUMBER, help="Reward for the winning pool, in the smallest unit.")],
    name: Annotated[str, typer.Option(help="Name of the task.")] = "task",
    hidden: Annotated[
        str | None,
        typer.Option(help="Widths of the hidden layers, like 16,16; empty: none. Default: 16, or empty for a regression."),
    ] = None,
    activation: Annotated[str, typer.Option(help="sigmoid, relu or identity.")] = "sigmoid",
    bond: Annotated[int, typer.Option(min=0, max=MOST_NUMBER, help="Bond, at least the reward; 0: the reward.")] = 0,
    weight_bits: Annotated[int, typer.Option(min=0, max=12, help="Bits of a scored weight; 0: 10.")] = 0,
    buckets: Annotated[
        int, typer.Option(min=0, max=MAX_CUTS + 1, help="Regression: y is real, counted by so many buckets of practice rows.")
    ] = 0,
    cuts: Annotated[str, typer.Option(help="Regression: y is real, counted by the buckets between values, like 10,20.5.")] = "",
    requester: RequesterOption = None, net: NetOption = None, node: NodeOption = None, tls: TlsOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Have the requester encrypt a test set and publish a task for it.

    The test set never leaves the requester's machine in the clear. What pools can learn of it is printed in bits.

    With --buckets or --cuts, y is a real target: the task is a regression, and a prediction is right when it is in the target's
    bucket.

    Example: pofl task submit --test test.npz --practice practice.npz --reward 1000000
    """
    cuts_micro = _cuts(cuts)
    if buckets and cuts_micro:
        raise ConfigError("--buckets and --cuts exclude one another: cut points make the buckets")
    hidden = hidden if hidden is not None else "" if buckets or cuts_micro else "16"
    try:
        kind = Activation[activation.upper()]
        widths = [int(width) for width in hidden.split(",") if width.strip()]
    except KeyError:
        raise ConfigError(f"--activation is {activation!r}: it must be sigmoid, relu or identity") from None
    except ValueError:
        raise ConfigError(f"--hidden is {hidden!r}: it must be whole numbers between commas") from None
    async with network(net, node, tls) as connection:
        address = connection.address("requester", requester)
        client = RequesterClient(connection.channel(address, "requester"), address)
        published = await client.publish(
            name, test_set.resolve(), practice_set.resolve(), widths, kind, Amount(reward), Amount(bond or reward), weight_bits,
            cuts_micro=cuts_micro, buckets=buckets,
        )  # fmt: skip
    if as_json:
        emit_json(published)
        return
    console.print(f"task {published.task_id.hex()} is published")
    console.print(f"leak_bits {published.leak_bits}: what the pools together may learn of one test row")
    for warning in published.warnings:
        console.print(f"warning: {warning}")


@app.command("list")
@runs
async def list_tasks(
    phase: Annotated[list[str] | None, typer.Option(help="Only tasks of this phase; repeatable.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Tasks on the chain, oldest first.

    Example: pofl task list --phase won
    """
    phases = [_phase(word) for word in phase or ()]
    async with network(net, node, tls) as connection:
        tasks = await connection.chain.tasks(phases, limit)
        if as_json:
            emit_json(tasks)
        else:
            console.print(_table(tasks, connection))


@app.command()
@runs
async def show(
    task: Annotated[str, typer.Argument(help="Task id, or its first 8 or more hex digits.")],
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """One task: its family, windows, and every pool's entry, commit and claim.

    Example: pofl task show 1f3a9c02, with an id from `pofl task list`
    """
    async with network(net, node, tls) as connection:
        found = await find_task(connection, task)
        if as_json:
            emit_json(found)
            return
        spec = found.spec
        widths = "-".join(str(width) for width in (spec.features, *spec.hidden, spec.classes))
        console.print(f"{spec.name} · {found.phase.name.lower()} · {found.task_id.hex()}")
        console.print(f"  family     {widths}, {spec.activation.name.lower()}, {spec.weight_bits}-bit weights")
        if spec.cuts_micro:
            console.print(f"  targets    real, {cuts_in_words(spec.cuts_micro)}")
        console.print(f"  test set   {spec.samples} rows, secret")
        console.print(f"  reward     {found.reward}, bond {found.bond}, pools lock at least {found.min_pool_bond}")
        console.print(f"  leak_bits  {leak_in_words(spec.leak_bits, spec.features)}")
        if found.start_ms and found.entry_close_ms and found.commit_close_ms and found.claim_close_ms:
            closes = (found.entry_close_ms, found.commit_close_ms, found.claim_close_ms)
            console.print(f"  windows    from {instant(found.start_ms)} on")
            console.print(f"             entry, commits, claims until {', '.join(map(instant, closes))}")
        if found.phase.is_ended:
            console.print(f"  ended      {ending_in_words(found)}")
        rows = [
            (
                connection.name_of(e.pool), e.bond, e.model_commitment.hex()[:8] if e.model_commitment else "-",
                "-" if e.correct is None else f"{e.correct}/{spec.samples}",
            )
            for e in found.entries
        ]  # fmt: skip
        console.print(table("pools", ["pool", "bond", "commit", "claim"], rows, right=[1, 3]))


@app.command()
@runs
async def watch(
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False
) -> None:  # fmt: skip
    """Unfinished tasks, again after every block that changes one, until Ctrl-C.

    Example: pofl task watch
    """
    async with network(net, node, tls) as connection:
        async for update in connection.chain.watch_tasks():
            if as_json:
                emit_json({"height": update.height, "block_time_ms": update.block_time_ms, "tasks": update.tasks})
                continue
            console.print(f"height {update.height}")
            for task in update.tasks:
                entered = ", ".join(connection.name_of(e.pool) for e in task.entries) or "nobody yet"
                console.print(f"  {short(task.task_id)} {task.spec.name:<12} {task.phase.name.lower():<10} {entered}")


def _phase(word: str) -> TaskPhase:
    try:
        return TaskPhase[word.upper()]
    except KeyError:
        known = ", ".join(phase.name.lower() for phase in TaskPhase)
        raise ConfigError(f"--phase is {word!r}: it must be one of {known}") from None


def _table(tasks: tuple[TaskView, ...], connection: Connection) -> object:
    rows = [
        (
            short(t.task_id), t.spec.name, t.phase.name.lower(), t.reward, len(t.entries),
            connection.name_of(t.winner) if t.winner else "-", t.ended_height or "-",
        )
        for t in tasks
    ]  # fmt: skip
    return table("tasks", ["task", "name", "phase", "reward", "pools", "winner", "height"], rows, right=[3, 4, 6])

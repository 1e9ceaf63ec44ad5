"""``pofl pool members|tasks|rounds|contributions``: what a pool signed, checked by whoever asks, and what the chain paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from core.chain.block import Payout
from core.codec import decode_as
from core.errors import CheatingError, ConfigError, NotFoundError
from core.ids import AccountId, Amount, Digest, TaskId, short
from core.market.contribution_books import Audited, audit, audit_held
from core.market.contributions import ENTRY, MAX_ENTRY, Closing, Entry, RoundSheet, SignedAnswer, SignedClosing, check_payouts
from services.cli.connection import Connection, NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json, table
from services.rpc.convert_mining import MinedTask
from services.rpc.mining_client import PoolClient
from services.rpc.views import TaskPhase
from services.storage.journal import read_journal

__all__ = ["register"]

PoolOption = Annotated[
    str | None, typer.Option("--pool", metavar="HOST:PORT", help="The pool manager's process; default: the testnet's first.")
]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="Task id, or its first 8 or more hex digits; default: the newest with a round.")
]


@dataclass(frozen=True, slots=True)
class Paid:
    """What the chain paid out for a task that this pool won."""

    height: int
    payouts: Mapping[AccountId, Amount]


def register(app: typer.Typer) -> None:
    app.command("members")(members)
    app.command("tasks")(tasks)
    app.command("rounds")(rounds)
    app.command("contributions")(contributions)


@runs
async def members(
    pool: PoolOption = None, net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False
) -> None:
    """Members of a pool, the rows that each brought, and what it contributed to the last task.

    Example: pofl pool members
    """
    async with network(net, node, tls) as connection:
        found = await _pool(connection, pool).members()
        if as_json:
            emit_json({"members": found})
            return
        rows = [
            (connection.name_of(m.miner), m.miner.hex(), m.rows, m.contribution, "yes" if m.is_online else "") for m in found
        ]
        console.print(table("members", ["name", "account", "rows", "contribution", "online"], rows, right=[2, 3]))


@runs
async def tasks(
    pool: PoolOption = None, net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False
) -> None:
    """Tasks that a pool trained for and keeps the book of, newest first.

    Example: pofl pool tasks
    """
    async with network(net, node, tls) as connection:
        found = await _pool(connection, pool).mined_tasks()
        if as_json:
            emit_json({"tasks": found})
            return
        # One at a time is trained for: the newest.
        rows = [
            (
                t.task_id.hex(), t.rounds, t.counted, f"{t.best_correct}/{t.rows}",
                "closed" if t.is_closed else "given up" if number else "training",
            )
            for number, t in enumerate(found)
        ]  # fmt: skip
        console.print(table("tasks", ["task", "rounds", "examples counted", "best practice", ""], rows, right=[1, 2, 3]))


@runs
async def rounds(
    task: TaskOption = None, pool: PoolOption = None, net: NetOption = None, node: NodeOption = None, tls: TlsOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Rounds of a running or a past task: who was counted, who was not and why, practice accuracy, time, bytes.

    Example: pofl pool rounds --task 3fa1b2c4
    """
    async with network(net, node, tls) as connection:
        client = _pool(connection, pool)
        task_id = await _task_id(client, task)
        entries = await client.contributions(task_id)
        _checked(entries, await connection.genesis_id(), task_id)
        sheets = [entry for entry in entries if isinstance(entry, RoundSheet)]
        if as_json:
            emit_json({"task_id": task_id, "rounds": [{"head": s.signed.head, "lines": s.lines} for s in sheets]})
            return
        console.print(table(f"rounds of task {short(task_id)}", _ROUND_COLUMNS, [_round_row(connection, s) for s in sheets],
                            right=range(7)))  # fmt: skip


_ROUND_COLUMNS = ["head", "round", "counted", "examples", "practice", "seconds", "KB up/down", "not counted"]


def _round_row(connection: Connection, sheet: RoundSheet) -> Sequence[object]:
    head = sheet.signed.head
    out = [f"{connection.name_of(line.miner)}: {line.reason}" for line in sheet.lines if line.reason]
    return (
        head.number, head.round, f"{sum(1 for line in sheet.lines if not line.reason)}/{head.lines}", head.counted,
        f"{head.correct}/{head.rows}", f"{head.milliseconds / 1000:.2f}",
        f"{head.bytes_up / 1e3:.0f}/{head.bytes_down / 1e3:.0f}", "; ".join(out),
    )  # fmt: skip


@runs
async def contributions(
    task: TaskOption = None,
    held: Annotated[
        Path | None,
        typer.Option("--held", metavar="DIR", help="A miner's data folder: check what it holds. The pool is not asked."),
    ] = None,
    pool: PoolOption = None, net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """What each member contributed to a task by the pool's signed book, who agreed, and whether the chain paid just that.

    Every signature, link, root and sum is checked here. Ends with exit code 5 if the book is wrong, or the payouts of the work
    block are other than the pool signed.

    Example: pofl pool contributions

    Example: pofl pool contributions --held /var/lib/pofl/miner0
    """
    async with network(net, node, tls) as connection:
        chain_id = await connection.genesis_id()
        if held is not None:
            await _show_held(connection, held, task, as_json)
            return
        client = _pool(connection, pool)
        task_id = await _task_id(client, task)
        found, account = _checked(await client.contributions(task_id), chain_id, task_id)
        paid = await _paid(connection, task_id, account)
        verdict = _verdict(found.closing, paid)
        if as_json:
            emit_json(
                {
                    "task_id": task_id, "pool": account, "rounds": len(found.heads), "closed": found.closing is not None,
                    "members": [
                        {"miner": m, "examples": c, "rounds": found.rounds[m], "agreed": found.agreed.get(m, 0),
                         "objection": found.objections.get(m, ""), "paid": paid.payouts.get(m, 0) if paid else None}
                        for m, c in sorted(found.sums.items())
                    ],
                    "height": paid.height if paid else None, "verdict": verdict,
                }
            )  # fmt: skip
            return
        total = max(1, sum(found.sums.values()))
        rows = [
            (connection.name_of(m), m.hex(), c, f"{100 * c / total:.1f} %", found.rounds[m], _word(found, m),
             paid.payouts.get(m, 0) if paid else "")
            for m, c in sorted(found.sums.items())
        ]  # fmt: skip
        columns = ["name", "account", "examples", "share", "rounds", "its word", "paid"]
        console.print(table(f"contributions to task {short(task_id)}", columns, rows, right=[2, 3, 4, 6]))
        console.print(verdict)


async def _show_held(connection: Connection, folder: Path, task: str | None, as_json: bool) -> None:
    path = _held_file(folder, task)
    entries: list[Entry] = [decode_as(ENTRY, record, MAX_ENTRY) for record in read_journal(path)]
    try:
        receipts, closing = audit_held(entries, await connection.genesis_id())
    except NotFoundError as error:
        raise NotFoundError(f"{path}: {error.message}") from None
    newest = receipts[max(receipts)]
    head, miner = newest.signed.head, newest.line.miner
    examples = sum(receipt.line.counted for receipt in receipts.values())
    paid = await _paid(connection, head.task_id, head.pool)
    verdict = _verdict(closing, paid)
    if as_json:
        emit_json(
            {
                "file": path, "task_id": head.task_id, "pool": head.pool, "miner": miner, "receipts": len(receipts),
                "examples": examples, "of": head.total, "closed": closing is not None,
                "paid": paid.payouts.get(miner, 0) if paid else None, "height": paid.height if paid else None,
                "verdict": verdict,
            }
        )  # fmt: skip
        return
    console.print(
        f"{len(receipts)} receipts of {connection.name_of(miner)} for task {short(head.task_id)}, signed by pool "
        f"{connection.name_of(head.pool)}: {examples} examples of {head.total} up to round {head.round}"
    )
    if paid is not None:
        console.print(f"paid in block {paid.height}: {paid.payouts.get(miner, 0)}")
    console.print(verdict)


def _held_file(folder: Path, task: str | None) -> Path:
    """The miner's newest book, or that of a task. Raises ConfigError."""
    files = [p for p in (folder / "contributions").glob("*/*.log") if not p.name.startswith("proof-")]
    files = [p for p in files if task is None or p.stem.startswith(task.lower())]
    if not files:
        raise ConfigError(
            f"{folder / 'contributions'} holds no book{'' if task is None else f' of task {task}'}: name data_dir of a miner"
        )
    return max(files, key=lambda p: p.stat().st_mtime)


def _checked(entries: Sequence[Entry], chain_id: Digest, task_id: TaskId) -> tuple[Audited, AccountId]:
    """Raises CryptoError or CheatingError for a book that does not hold, NotFoundError for an empty one."""
    pool = next((_pool_of(entry) for entry in entries), None)
    if pool is None:
        raise NotFoundError(
            f"the pool's book has no round of task {short(task_id)}: name another with --task (`pofl pool tasks` lists them)"
        )
    return audit(entries, chain_id, pool, task_id), pool


def _pool_of(entry: Entry) -> AccountId:
    if isinstance(entry, SignedClosing):
        return entry.closing.pool
    return entry.answer.pool if isinstance(entry, SignedAnswer) else entry.signed.head.pool


async def _paid(connection: Connection, task_id: TaskId, pool: AccountId) -> Paid | None:
    """None unless the pool won the task."""
    view = await connection.chain.task(task_id)
    if view.phase is not TaskPhase.WON or view.winner != pool or view.ended_height is None:
        return None
    block = await connection.chain.block(view.ended_height)
    return Paid(int(view.ended_height), {p.account: p.amount for p in block.payouts})


def _verdict(signed: SignedClosing | None, paid: Paid | None) -> str:
    """One sentence. Raises CheatingError if the chain paid other than the pool signed."""
    if paid is None:
        return "nothing is paid: the task is not won by this pool, or not yet"
    if signed is None:
        raise CheatingError(f"block {paid.height} pays for this task, and there is no signed closing of its contributions")
    closing: Closing = signed.closing
    check_payouts(closing, [Payout(account, amount) for account, amount in paid.payouts.items()])
    return f"block {paid.height} pays what the pool signed, to the last unit"


def _word(found: Audited, miner: AccountId) -> str:
    objection = found.objections.get(miner)
    if objection:
        return f"objects: {objection}"
    place = found.agreed.get(miner, 0)
    if place > len(found.heads):
        return "agreed to the closing"
    return f"agreed to head {place}" if place else "none"


def _pool(connection: Connection, given: str | None) -> PoolClient:
    address = connection.address("pool", given)
    return PoolClient(connection.channel(address, "pool"), address)


async def _task_id(client: PoolClient, text: str | None) -> TaskId:
    """Raises NotFoundError."""
    found: Sequence[MinedTask] = await client.mined_tasks()
    matches = [task.task_id for task in found if text is None or task.task_id.hex().startswith(text.lower())]
    if text is None and matches:
        # One that was given up before its first round has nothing to show.
        return next((task.task_id for task in found if task.rounds), matches[0])
    if len(matches) != 1:
        raise NotFoundError(
            f"the pool keeps the books of {len(found)} tasks, {len(matches)} of them begin with {text}"
            if text else "the pool has trained for no task yet"
        )  # fmt: skip
    return matches[0]

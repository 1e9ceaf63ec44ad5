"""``pofl chain`` and ``pofl explain``: read and check the chain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.chain.block import BlockKind
from core.chain.light import advance
from core.chain.verify import check_body
from core.errors import BlockError, ConfigError, InputError, NotFoundError
from core.ids import Height, short
from services.cli import chain_store, evidence, tasks, transcripts, validators
from services.cli.connection import GenesisOption, NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import MOST_NUMBER, JsonOption, console, emit_json, instant, table
from services.rpc.views import BlockView

__all__ = ["app", "explain"]

app = typer.Typer(help="Read and check the chain.", no_args_is_help=True)
chain_store.register(app)
validators.register(app)
evidence.register(app)
transcripts.register(app)


@app.command()
@runs
async def tip(net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False) -> None:
    """The last finalised block of a node.

    Example: pofl chain tip --json
    """
    async with network(net, node, tls) as connection:
        found = await connection.chain.tip()
    if as_json:
        emit_json(found)
        return
    console.print(f"height      {found.height}")
    console.print(f"block       {found.block_hash.hex()}")
    console.print(f"state root  {found.state_root.hex()}")
    console.print(f"version     {found.protocol_version} of the protocol at the next height")
    console.print(f"task        {found.current_task.hex() if found.current_task else '-'}")
    console.print(f"supply      {found.supply} (burned {found.burned})")
    console.print(f"peers       {found.peers}, {found.mempool} transactions waiting")


@app.command()
@runs
async def show(
    height: Annotated[int, typer.Argument(min=1, max=MOST_NUMBER, help="Height of the block.")],
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """One finalised block: header (paper, Fig. 3), payouts, transactions.

    Example: pofl chain show 12
    """
    async with network(net, node, tls) as connection:
        block = await connection.chain.block(Height(height))
        if as_json:
            emit_json(block)
            return
        header = block.header
        console.print(f"block {header.height} · {header.kind.name.lower()} · {block.block_hash.hex()}")
        console.print(f"  time          {instant(header.timestamp_ms)}")
        console.print(f"  previous      {header.prev_hash.hex()}")
        console.print(f"  merkle root   {header.merkle_root.hex()}")
        console.print(f"  state before  {header.parent_state_root.hex()}")
        console.print(f"  author        {connection.name_of(header.author_id)}")
        if header.task_id is not None:
            console.print(f"  task          {header.task_id.hex()}")
        if header.accuracy is not None and header.vm is not None:
            console.print(f"  accuracy      {header.accuracy.correct} of {header.accuracy.total}")
            console.print(f"  Vm            c_W {header.vm.model_commitment.hex()}")
            console.print(f"                garbled circuit {header.vm.garbled_circuit_digest.hex()}")
        console.print(f"  certificate   round {block.certificate.round}, {len(block.certificate.signatures)} signatures")
        if block.payouts:
            rows = [(connection.name_of(p.account), p.amount) for p in block.payouts]
            console.print(table("payouts", ["account", "amount"], rows, right=[1]))
        if block.transactions:
            rows_tx = [(short(t.tx_id), t.kind, connection.name_of(t.sender), t.nonce, t.fee) for t in block.transactions]
            console.print(table("transactions", ["id", "kind", "sender", "nonce", "fee"], rows_tx, right=[3, 4]))


@app.command()
@runs
async def verify(
    first: Annotated[int, typer.Option(min=1, max=MOST_NUMBER, help="First height.")] = 1,
    last: Annotated[int | None, typer.Option(min=1, max=MOST_NUMBER, help="Last height; default: the tip.")] = None,
    trusted_hash: validators.TrustedOption = None,
    data_dir: chain_store.DataDirOption = None, config: chain_store.ConfigOption = None,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, genesis_file: GenesisOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Check hashes, links, bodies and certificates of finalised blocks from the genesis document on.

    Every certificate must hold signatures of 2/3 of the power of its own height's validators, whom the chain itself proves.
    With --trusted-hash it begins at a block that you know instead. Exits with 5 at the first block that fails. With --node the
    genesis document is that of --genesis or --net: without either the node itself says which chain it is, and that is told.

    With --data-dir everything that a stopped node has stored is checked instead: every block is executed again.

    Example: pofl chain verify --first 10
    """
    if data_dir is not None or config is not None:
        chain_store.become("verify", data_dir, config, as_json)
    if last is not None and last < first:
        raise ConfigError(f"--last is {last}, --first is {first}: there is nothing to check")
    async with network(net, node, tls, genesis_file) as connection:
        genesis = await connection.genesis()
        is_known = connection.known is not None or trusted_hash is not None
        origin = await connection.origin(trusted_hash is not None)
        tip = (await connection.chain.tip()).height
        end = last if last is not None else tip
        if max(first, end) > tip:
            raise NotFoundError(f"no block at height {max(first, end)} yet: the last block is {tip}")
        trusted = await validators.trust(connection, genesis, trusted_hash, tip)
        first = max(first, trusted.height + 1)
        if first > end:
            raise ConfigError(f"block {trusted.height} is trusted, and {end} is the last to check: there is nothing to check")
        trusted = await connection.chain.follow(trusted, Height(first - 1))
        before: BlockView | None = None
        for height in range(first, end + 1):
            block = await connection.chain.block(Height(height))
            light = await connection.chain.light_block(Height(height))
            trusted = advance(trusted, light)
            if light.header != block.block.header:
                raise BlockError(f"block {height} is {short(block.block_hash)}, final is {short(trusted.block_hash)}")
            try:
                body = block.block.decoded_body()
            except InputError as error:
                raise BlockError(f"block {height} cannot be read, {error.message}: is the node of another release?") from None
            check_body(block.header, body)
            if before is not None and block.header.parent_state_root != before.state_root:
                raise BlockError(f"block {height} was built on another state than the node shows after block {height - 1}")
            before = block
    if as_json:
        found = {"first": first, "last": end, "chain_id": genesis.chain_id, "chain": genesis.name, "is_chain_known": is_known}
        emit_json(found | {"verified": end - first + 1})
    else:
        console.print(f"blocks {first} to {end}: links, roots and certificates hold")
        console.print(origin, markup=False)


@runs
async def explain(
    height: Annotated[int, typer.Argument(min=1, max=MOST_NUMBER, help="Height of a work or void block.")],
    folder: Annotated[
        Path | None, typer.Option("--transcripts", metavar="DIR", help="Write every node's audit transcripts into this folder.")
    ] = None,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Why this pool won, and why the others did not.

    Shows entries, commits, claims in rank order, the verdicts with their reasons, and the payouts of a height. With
    --transcripts it asks every node for the signed transcripts of its audits; `pofl chain transcript` checks them offline.

    Example: pofl explain 12 --transcripts proofs
    """
    async with network(net, node, tls) as connection:
        found = await connection.chain.explain(Height(height))
        written = await transcripts.write_all(connection, Height(height), folder) if folder is not None else []
        if as_json:
            emit_json(found)
            return
        for line in found.lines:
            console.print(line)
        if found.verdicts:
            rows = [
                (connection.name_of(v.validator), connection.name_of(v.pool), v.kind, v.correct, v.audit_ms or "-", v.reason)
                for v in found.verdicts
            ]
            columns = ["validator", "pool", "verdict", "N*", "own audit ms", "reason"]
            console.print(table("verdicts", columns, rows, right=[3, 4]))
        if found.transcripts:
            kept = [(connection.name_of(t.validator), t.purpose, t.result, t.size, short(t.head)) for t in found.transcripts]
            title = f"transcripts of {connection.name_of(found.transcripts[0].validator)}, which tells this"
            console.print(table(title, ["validator", "of", "result", "bytes", "head"], kept, right=[3]))
        for path in written:
            console.print(f"wrote {path}")
        if found.block.header.kind is BlockKind.TRANSACTION:
            ended = [task async for task in tasks.all_tasks(connection) if task.ended_height == height]
            for task in ended:
                console.print(f"Task {task.spec.name!r} {short(task.task_id)} is over: {tasks.ending_in_words(task)}.")
            if not ended:
                console.print("a transaction block: nothing was decided here but the order of its transactions")

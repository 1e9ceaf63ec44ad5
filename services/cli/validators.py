"""``pofl validator`` and ``pofl chain validators``: who votes, and agreeing on changes of it (docs/adr/0074).

A change travels between the validators as a small JSON file that each of them signs. What counts in it is the encoded
change; the readable fields beside it are written for people and never read back.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from core.chain.light import Trusted, trust_genesis, trust_hash
from core.chain.rules_validators import check_approval, check_newcomer
from core.chain.state import Account
from core.chain.transaction import (
    DOMAIN_APPROVAL,
    PAYLOAD,
    Approval,
    JoinValidator,
    LeaveValidator,
    ScheduleUpgrade,
    approval_message,
)
from core.chain.verify import is_quorum
from core.codec import decode_as, encode_as
from core.crypto import signing
from core.errors import ConfigError, InputError, MalformedError, NotFoundError, PoflError, TransactionError
from core.ids import AccountId, Amount, BlockHash, Digest, Height, NodeId, short
from core.params import Genesis
from services.cli.connection import Connection, GenesisOption, NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import MOST_NUMBER, JsonOption, console, emit_json, table
from services.rpc.chain_client import Wallet
from services.rpc.role import read_key
from services.rpc.views import ValidatorView
from services.runtime.address import host_and_port

__all__ = ["TrustedOption", "app", "parse_trusted", "register", "trust"]

app = typer.Typer(help="Become a validator, leave, and agree on who does.", no_args_is_help=True)

Change = JoinValidator | LeaveValidator | ScheduleUpgrade
KeyOption = Annotated[Path, typer.Option("--key", metavar="FILE", help="Key file of the account that signs.")]
FileArgument = Annotated[Path, typer.Argument(help="File of a change, as `pofl validator join` or `leave` write it.")]
TrustedOption = Annotated[
    str | None,
    typer.Option(
        "--trusted-hash", metavar="HEIGHT:HASH", help="A final block that you know from a source of your own; default: genesis."
    ),
]
GOOD_FOR: Final = 10_000
"""Blocks within which a change is to be made."""
MAX_FILE: Final = 256 * 1024
WAIT_SECONDS: Final = 60.0


# -- what light clients trust ------------------------------------------------------------------------------------------


def parse_trusted(text: str) -> tuple[Height, BlockHash]:
    """HEIGHT:HASH. Raises ConfigError."""
    height, _, digits = text.partition(":")
    try:
        number, value = int(height), bytes.fromhex(digits)
    except ValueError:
        number, value = 0, b""
    if number < 1 or len(value) != 32:
        raise ConfigError(f"--trusted-hash is {text!r}: it must be HEIGHT:HASH, a height and the 64 hex digits of its block")
    return Height(number), BlockHash(value)


async def trust(connection: Connection, genesis: Genesis, text: str | None, tip: Height | None = None) -> Trusted:
    """Where a check begins: the block that the user names, else genesis. ``tip``: the last height, if it is known.

    Raises ConfigError, ChainError, NotFoundError for a block that is not there yet.
    """
    if text is None:
        return trust_genesis(genesis)
    height, block_hash = parse_trusted(text)
    tip = (await connection.chain.tip()).height if tip is None else tip
    if height > tip:
        raise NotFoundError(f"no block at height {height} yet, which --trusted-hash names: the last block is {tip}")
    return trust_hash(genesis.chain_id, height, block_hash, await connection.chain.light_block(height))


# -- who votes ---------------------------------------------------------------------------------------------------------


def register(chain: typer.Typer) -> None:
    chain.command("validators")(show)
    chain.command("account")(prove_account)


@runs
async def show(net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False) -> None:
    """Who votes at the next height and after it, and whose bonds are still held.

    Example: pofl chain validators
    """
    async with network(net, node, tls) as connection:
        views, height = await connection.chain.validators()
        if as_json:
            emit_json({"height": height, "validators": views})
            return
        names = [v.name or connection.name_of(v.node_id) for v in views]
        rows = [
            (name, v.node_id.hex(), v.power, v.next_power, v.bond, v.since_height, _standing(v))
            for name, v in zip(names, views, strict=True)
        ]
        columns = ["name", "node", "power", "next", "bond", "since", "standing"]
        console.print(table(f"validators after block {height}", columns, rows, right=[2, 3, 4, 5]))


@runs
async def prove_account(
    account: Annotated[
        str, typer.Argument(metavar="ACCOUNT", help="64 hex digits; a name of the genesis document, or first digits there.")
    ],
    trusted_hash: TrustedOption = None,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, genesis_file: GenesisOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """An account's balance, proven: no node is believed (docs/light-client.md).

    It is the balance before the last block, whose header commits to it. With --node the genesis document is that of --genesis
    or --net: without either the node itself says which chain it is, and that is told.

    Example: pofl chain account pool0
    """
    async with network(net, node, tls, genesis_file) as connection:
        key = await connection.account(account)
        origin = await connection.origin(trusted_hash is not None)
        trusted = await trust(connection, await connection.genesis(), trusted_hash)
        found, at = await connection.chain.prove(Account, "accounts", key, trusted)
    record = found or Account(Amount(0), 0)
    shown = {"account": key, "balance": record.balance, "nonce": record.nonce, "before_block": at.height, "hash": at.block_hash}
    if as_json:
        emit_json(shown)
        return
    console.print(f"account     {key.hex()}")
    console.print(f"balance     {record.balance}{'' if found else ' (the account is in no table: nobody has paid it)'}")
    console.print(f"next nonce  {record.nonce}")
    console.print(f"before      block {at.height}, {at.block_hash.hex()}")
    console.print(origin, markup=False)


def _standing(view: ValidatorView) -> str:
    if view.has_equivocated:
        return "equivocated"
    return "" if view.release_ms is None else f"left; bond held until block time {view.release_ms}"


# -- changing it -------------------------------------------------------------------------------------------------------


@app.command()
@runs
async def join(
    key: KeyOption,
    bond: Annotated[int, typer.Option(min=0, max=MOST_NUMBER, help="Bond to lock; it goes back some time after you left.")],
    endpoint: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where this node is reached.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write, for the validators to sign.")],
    power: Annotated[int, typer.Option(min=1, max=MOST_NUMBER, help="Votes; at most those of the strongest validator.")] = 1,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Ask to become a validator: writes the change that validators with 2/3 of the power must sign.

    Make no other transaction with this account until it is handed in.

    Example: pofl validator join --key node.key --bond 1000000 --endpoint 10.0.0.7:9000 --out join.json
    """
    pair = read_key(key)
    host_and_port(endpoint, "--endpoint")
    me = NodeId(pair.public_key)
    async with network(net, node, tls) as connection:
        account = await connection.chain.account(AccountId(pair.public_key))
        views, height = await connection.chain.validators()
        genesis = await connection.genesis()
    change = JoinValidator(me, power, Amount(bond), endpoint, account.next_nonce, Height(height + GOOD_FOR), ())
    # What the chain would refuse in the end is said before anybody signs.
    if any(v.node_id == me for v in views):
        raise ConfigError(
            f"{short(me)}, the account of {key}, is a validator or has left a short time ago: see `pofl chain validators`"
        )
    check_newcomer(genesis.params, change, [v.next_power for v in views if v.next_power])
    if account.balance < bond + genesis.params.min_fee:
        raise ConfigError(
            f"account {short(me)} has {account.balance}, it needs the bond of {bond} and a fee: pay it first (`pofl transfer`)"
        )
    _write(out, genesis.chain_id, change, as_json)


@app.command()
@runs
async def leave(
    validator: Annotated[str, typer.Argument(help="The validator's node id: 64 hex digits, as `pofl chain validators` shows.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write, for the validators to sign.")],
    reason: Annotated[str, typer.Option(help="Why, for those who sign.")] = "",
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Ask that a validator leaves, yours or a dead one: writes the change that 2/3 of the power must sign.

    Example: pofl validator leave 4e1c... --reason "moving house" --out leave.json
    """
    try:
        member = NodeId(bytes.fromhex(validator))
    except ValueError:
        raise ConfigError(f"{validator!r} is no node id: 64 hex digits") from None
    async with network(net, node, tls) as connection:
        views, height = await connection.chain.validators()
        genesis = await connection.genesis_id()
    view = next((v for v in views if v.node_id == member and v.next_power), None)
    if view is None:
        raise ConfigError(f"{short(member)} is no validator at height {height}: see `pofl chain validators`")
    change = LeaveValidator(member, view.since_height, reason, Height(height + GOOD_FOR), ())
    _write(out, genesis, change, as_json)


@app.command()
@runs
async def upgrade(
    version: Annotated[int, typer.Option(min=2, help="The protocol version, one more than the chain's now.")],
    height: Annotated[int, typer.Option(min=1, max=MOST_NUMBER, help="Its first height.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write, for the validators to sign.")],
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Ask for a new protocol version from a height on: writes the change that 2/3 of the power must sign.

    Nodes that do not know the version stop before that height and say so.

    Example: pofl validator upgrade --version 2 --height 120000 --out upgrade.json
    """
    async with network(net, node, tls) as connection:
        tip = await connection.chain.tip()
        genesis = await connection.genesis()
    least, following = tip.height + genesis.params.upgrade_notice + 1, tip.protocol_version + 1
    if version != following:
        raise ConfigError(f"--version is {version}: the chain follows version {following - 1}, the next one is {following}")
    if height < least:
        raise ConfigError(f"--height is {height}: the last block is {tip.height}, and nodes need notice until {least} at least")
    _write(out, genesis.chain_id, ScheduleUpgrade(version, Height(height), Height(tip.height + GOOD_FOR), ()), as_json)


@app.command()
@runs
async def sign(file: FileArgument, key: KeyOption, as_json: JsonOption = False) -> None:
    """Agree to a change: adds your signature to its file. Read what is printed first.

    Example: pofl validator sign join.json --key node0.key
    """
    chain_id, change = _read(file)
    pair = read_key(key)
    mine = Approval(NodeId(pair.public_key), signing.sign(pair, DOMAIN_APPROVAL, approval_message(chain_id, change)))
    others = tuple(a for a in change.approvals if a.validator != mine.validator)
    _write(file, chain_id, replace(change, approvals=tuple(sorted((*others, mine), key=lambda a: a.validator))), as_json, True)


@app.command()
@runs
async def submit(
    file: FileArgument, key: KeyOption,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Hand in a signed change. A join is the newcomer's own transaction, a leave anybody's.

    Example: pofl validator submit join.json --key node.key
    """
    chain_id, change = _read(file)
    async with network(net, node, tls) as connection:
        genesis = await connection.genesis()
        if genesis.chain_id != chain_id:
            raise ConfigError(f"{file} is for chain {short(chain_id)}, this network is another one")
        views, _ = await connection.chain.validators()
        power = {v.node_id: v.power for v in views if v.power}
        agreed = sum(power.get(a.validator, 0) for a in change.approvals)
        if not is_quorum(agreed, sum(power.values())):
            signed = {a.validator for a in change.approvals}
            missing = ", ".join(v.name or short(v.node_id) for v in views if v.power and v.node_id not in signed)
            raise ConfigError(f"a power of {agreed} of {sum(power.values())} has signed, 2/3 are needed; not yet: {missing}")
        known = {bytes(n): p for n, p in power.items()}
        approvals = tuple(a for a in change.approvals if bytes(a.validator) in known)
        change = replace(change, approvals=approvals)
        wallet = Wallet.of(connection.chain, genesis, read_key(key))
        _, height = await wallet.send_and_wait(change, WAIT_SECONDS)
    if as_json:
        emit_json({"height": height, "effective": _effect(change, height)})
    else:
        console.print(f"final in block {height}: in effect from height {_effect(change, height)} on")


def _effect(change: Change, height: Height) -> int:
    return change.height if isinstance(change, ScheduleUpgrade) else height + 2


# -- files -------------------------------------------------------------------------------------------------------------


def _write(path: Path, chain_id: Digest, change: Change, as_json: bool, replaces: bool = False) -> None:
    plain: dict[str, object] = {
        "chain": chain_id.hex(),
        "change": encode_as(PAYLOAD, change).hex(),
        "expires_height": change.expires_height,
        "signed_by": [a.validator.hex() for a in change.approvals],
    }
    match change:
        case JoinValidator():
            plain |= {"kind": "join", "validator": change.validator.hex(), "power": change.power, "bond": change.bond}
            plain |= {"endpoint": change.endpoint}
        case LeaveValidator():
            plain |= {"kind": "leave", "validator": change.validator.hex(), "since_height": change.since_height}
            plain |= {"reason": change.reason}
        case ScheduleUpgrade():
            plain |= {"kind": "upgrade", "version": change.version, "height": change.height}
    try:
        with path.open("w" if replaces else "x", encoding="utf-8") as file:
            file.write(json.dumps(plain, indent=2) + "\n")
    except FileExistsError:
        raise ConfigError(f"{path} exists: choose another file") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
    if as_json:
        emit_json(plain)
        return
    for name, value in plain.items():
        if name != "change":
            console.print(f"{name:15} {', '.join(value) if isinstance(value, list) else value}", markup=False)
    console.print(f"written to {path}", markup=False)


def _read(path: Path) -> tuple[Digest, Change]:
    """The change in a file, every signature in it checked. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        document = json.loads(data)
        chain_id, change = bytes.fromhex(document["chain"]), decode_as(PAYLOAD, bytes.fromhex(document["change"]))
        if len(data) > MAX_FILE or len(chain_id) != 32 or not isinstance(change, Change):
            raise MalformedError("it holds something else")
        message = approval_message(Digest(chain_id), change)
        for approval in change.approvals:
            check_approval(approval, message, {approval.validator: 1})
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError, InputError, TransactionError) as error:
        raise ConfigError(
            f"{path} is no change of the validators, or was edited ({_fault(error)}): get the file again from whoever wrote it "
            "with `pofl validator join`, `leave` or `upgrade`"
        ) from None
    return Digest(chain_id), change


def _fault(error: Exception) -> str:
    """In words of the file, not of this program."""
    if isinstance(error, PoflError):
        return error.message
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return "it is no JSON"
    return "its chain or change are no hex digits" if isinstance(error, ValueError) else "it is no JSON object"

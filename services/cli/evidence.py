"""``pofl chain evidence``: validators whose cheating the chain has proof of, and the two messages of each that prove it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from core.chain.block import NIL
from core.chain.evidence import is_equivocation, is_verdict_equivocation
from core.chain.rules_validators import DOMAIN_EVIDENCE
from core.chain.state import Evidence
from core.chain.transaction import Equivocation, SignedTransaction, VerdictEquivocation
from core.chain.verify import check_verdict, check_vote
from core.chain.vote import Verdict, Vote
from core.codec import decode
from core.crypto.hashing import digest
from core.errors import ChainError, ConfigError, InputError
from core.ids import Digest, Height, NodeId, short
from services.cli.connection import Connection, GenesisOption, NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json
from services.cli.validators import trust

__all__ = ["evidence", "register"]


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of one validator."""

    validator: NodeId
    height: Height | None
    """Of the block that has the proof; None while the chain does not commit to it yet."""
    messages: tuple[Vote | Verdict, ...]
    """The two that it signed, which was checked here; none if they cannot be shown."""
    signatures: tuple[bytes, ...]
    problem: str
    """Why there are no messages; empty if there are."""


def register(chain: typer.Typer) -> None:
    chain.command("evidence")(evidence)


@runs
async def evidence(
    validator: Annotated[
        str | None, typer.Argument(metavar="[VALIDATOR]", help="Node id, or name in the genesis document; default: all known.")
    ] = None,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, genesis_file: GenesisOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Validators that were convicted of signing two different things, with both signed messages.

    The signatures are checked here: they convict whatever the node says. Looked at are the validators of the genesis document
    and those of `pofl chain validators`; one that joined and was expelled is in neither, and asked for by its id.

    Example: pofl chain evidence
    """
    async with network(net, node, tls, genesis_file) as connection:
        views, height = await connection.chain.validators()
        names: dict[NodeId, str] = {v.node_id: v.name or connection.name_of(v.node_id) for v in views}
        fresh = {v.node_id for v in views if v.has_equivocated}
        if validator is not None:
            asked = [NodeId(bytes(await connection.account(validator)))]
        else:
            # Two heights after the proof a validator is in no list any more: those of genesis are known all the same.
            first = (await connection.genesis()).validators
            asked = sorted({*names, *(v.node_id for v in first)})
        looked = [await _look(connection, each) for each in asked]
        found = [one for one in looked if one.height is not None or one.validator in fresh]
    if validator is not None and not found:
        raise ConfigError(f"nothing is proven against {short(asked[0])} up to height {height}")
    if as_json:
        emit_json({"height": height, "convicted": found})
        return
    if not found:
        console.print(f"of the validators in the genesis document or the list of now none was convicted up to height {height}")
    for one in found:
        where = "in the last block" if one.height is None else f"in block {one.height}"
        console.print(f"{names.get(one.validator, '')} {one.validator.hex()}: convicted {where}".lstrip(), markup=False)
        if one.problem:
            console.print(f"  {one.problem}", markup=False)
        for message, signature in zip(one.messages, one.signatures, strict=True):
            console.print(f"  {_in_words(message)}, signature {signature.hex()}", markup=False)


async def _look(connection: Connection, validator: NodeId) -> Found:
    genesis = await connection.genesis()
    trusted = await trust(connection, genesis, None)
    record, _ = await connection.chain.prove(Evidence, "evidence", digest(DOMAIN_EVIDENCE, validator), trusted)
    if record is None:
        return Found(validator, None, (), (), "the proof is shown after the next block")
    try:
        block = await connection.chain.block(record.height)
        for each in block.transactions:
            payload = decode(SignedTransaction, each.encoded).decoded().payload
            if isinstance(payload, Equivocation | VerdictEquivocation):
                pair = _checked(payload, genesis.chain_id, validator)
                if pair:
                    return Found(validator, record.height, pair, (payload.first.signature, payload.second.signature), "")
    except InputError as error:  # pruned, or of another release
        return Found(validator, record.height, (), (), error.message)
    return Found(validator, record.height, (), (), f"the node shows no such proof in block {record.height}: ask another one")


def _checked(payload: Equivocation | VerdictEquivocation, chain_id: Digest, validator: NodeId) -> tuple[Vote | Verdict, ...]:
    """Both messages, if this validator signed them and no honest one signs both; else none."""
    known = {bytes(validator): 1}
    try:
        if isinstance(payload, Equivocation):
            at = decode(Vote, payload.first.vote, 512).height
            votes = check_vote(payload.first, chain_id, at, known), check_vote(payload.second, chain_id, at, known)
            return votes if is_equivocation(*votes) else ()
        at = decode(Verdict, payload.first.verdict, 1024).height
        verdicts = check_verdict(payload.first, chain_id, at, known), check_verdict(payload.second, chain_id, at, known)
        return verdicts if is_verdict_equivocation(*verdicts) else ()
    except (InputError, ChainError):
        return ()


def _in_words(message: Vote | Verdict) -> str:
    if isinstance(message, Vote):
        what = "no block" if message.block_hash == NIL else f"block {message.block_hash.hex()}"
        return f"{message.step.name.lower()} at height {message.height}, round {message.round}, for {what}"
    kind = message.kind.name.lower().replace("_", "-")
    return f"verdict at height {message.height} on model {message.model_commitment.hex()}: {kind}, {message.correct} correct"

"""`pofl chain evidence`: what convicts a validator is shown, and checked without believing the node."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from core.chain import build
from core.chain.transaction import Equivocation
from core.chain.vote import Step, Vote
from core.errors import ConfigError
from core.ids import BlockHash, Height, Milliseconds, NodeId
from services.cli import evidence
from tests.chainkit import account, key, make_genesis, some
from tests.light_world import World
from tests.unit.test_cli_validators import ROOM, run


def guilty(world: World) -> Equivocation:
    first, second = (
        build.make_vote(
            key("v3"),
            Vote(
                world.chain.state.chain_id, Height(1), 0, Step.PREVOTE, BlockHash(some(x)), Milliseconds(0),
                NodeId(account("v3")),
            ),
        )
        for x in ("a", "b")
    )  # fmt: skip
    return Equivocation(first, second)


async def test_the_two_signed_votes_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    world = World(make_genesis(4, ROOM))
    world.chain.block()
    world.follow()
    async with world.served() as (address, _):
        there: dict[str, Any] = {"node": [address]}
        await run(evidence.evidence, **there)
        assert "none was convicted up to height 1" in capsys.readouterr().out
        proof = guilty(world)
        world.chain.block(world.chain.tx("other", proof, fee=0))
        world.follow()
        await run(evidence.evidence, **there)
        assert f"{account('v3').hex()}: convicted in the last block" in capsys.readouterr().out
        world.chain.block()
        world.follow()
        for asked in (None, account("v3").hex()):
            await run(evidence.evidence, asked, **there)
            said = capsys.readouterr().out
            assert f"{account('v3').hex()}: convicted in block 2" in said
            for name, signed in (("a", proof.first), ("b", proof.second)):
                vote = f"prevote at height 1, round 0, for block {some(name).hex()}, signature {signed.signature.hex()}"
                assert vote in said.replace("\n", "")
        await run(evidence.evidence, as_json=True, **there)
        shown = json.loads(capsys.readouterr().out)["convicted"]
        assert [(one["height"], len(one["messages"])) for one in shown] == [(2, 2)]
        with pytest.raises(ConfigError, match=r"nothing is proven against .* up to height 3"):
            await run(evidence.evidence, account("v0").hex(), **there)


def test_what_does_not_convict_is_not_shown() -> None:
    world = World(make_genesis(4, ROOM))
    proof = guilty(world)
    chain_id, node = world.chain.genesis.chain_id, NodeId(account("v3"))
    assert evidence._checked(proof, chain_id, node)
    forged = replace(proof.second, signature=proof.first.signature)
    for payload in (replace(proof, second=proof.first), replace(proof, second=forged)):
        assert evidence._checked(payload, chain_id, node) == ()

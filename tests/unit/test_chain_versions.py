"""A new protocol version from a height on: agreed by 2/3, known or a reason to stop, and never a fork."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from core.chain import build, rules, versions
from core.chain.state import State, Upgrade, decode_state, encode_state
from core.chain.transaction import Refusal, ScheduleUpgrade
from core.errors import BlockError, WrongChainError
from core.ids import Height, Milliseconds
from node.driver import Driver
from node.links import Links
from node.pending import Pending
from node.store import ChainStore
from services.storage import Memory
from tests.chainkit import Chain, key, make_certificate, make_genesis

SOON = replace(make_genesis().params, upgrade_notice=3)
THREE = ("v0", "v1", "v2")


def started() -> Chain:
    chain = Chain(make_genesis(4, SOON))
    chain.block()
    return chain


def upgrade(chain: Chain, height: int, *signers: str, version: int = 2, expires: int = 99) -> ScheduleUpgrade:
    return chain.approved(ScheduleUpgrade(version, Height(height), Height(expires), ()), *signers)


def test_the_new_version_holds_from_its_height_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "KNOWN_VERSIONS", frozenset({1, 2}))
    chain = started()
    chain.block(chain.tx("other", upgrade(chain, 6, *THREE)))
    assert chain.state.upgrade == Upgrade(2, Height(6))
    assert decode_state(encode_state(chain.state), chain.genesis) == chain.state
    while chain.state.height < 8:
        chain.block()
    assert [b.header.decoded().version for b in chain.blocks] == [1, 1, 1, 1, 1, 2, 2, 2]
    assert chain.state.version == 2
    assert chain.state.upgrade is None
    assert chain.refused(chain.tx("other", upgrade(chain, 20, *THREE))) == Refusal.OUT_OF_RANGE


@pytest.mark.parametrize(("at", "version"), [(4, 2), (6, 1)])
def test_a_block_that_names_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, at: int, version: int) -> None:
    monkeypatch.setattr(versions, "KNOWN_VERSIONS", frozenset({1, 2}))
    chain = started()
    chain.block(chain.tx("other", upgrade(chain, 6, *THREE)))
    while chain.state.height < at - 1:
        chain.block()
    chain.clock += 1000
    good = build.build_transaction_block(chain.state, key("v0"), chain.certificate(), []).block
    header = replace(good.header.decoded(), version=version)
    with pytest.raises(BlockError, match=f"protocol version {version}, at this height it is {3 - version}"):
        rules.apply_block(chain.state, build.make_block(key("v0"), header, good.decoded_body()))


def test_without_agreement_or_notice_nothing_changes() -> None:
    chain = started()
    tries = [
        (upgrade(chain, 9), Refusal.NOT_APPROVED),
        (upgrade(chain, 9, "v0", "v1", "other"), Refusal.NOT_APPROVED),
        (replace(upgrade(chain, 9, *THREE), height=Height(10)), Refusal.NOT_APPROVED),
        (upgrade(chain, 4, *THREE), Refusal.OUT_OF_RANGE),
        (upgrade(chain, 9, *THREE, version=3), Refusal.OUT_OF_RANGE),
        (upgrade(chain, 9, *THREE, version=1), Refusal.OUT_OF_RANGE),
        (upgrade(chain, 9, *THREE, expires=1), Refusal.EXPIRED),
    ]
    for payload, reason in tries:
        assert chain.refused(chain.tx("other", payload)) == reason, payload


def test_it_can_be_postponed_and_not_hurried() -> None:
    chain = started()
    chain.block(chain.tx("other", upgrade(chain, 9, *THREE)))
    assert chain.refused(chain.tx("other", upgrade(chain, 9, *THREE))) == Refusal.DUPLICATE
    assert chain.refused(chain.tx("other", upgrade(chain, 8, *THREE))) == Refusal.DUPLICATE
    chain.block(chain.tx("other", upgrade(chain, 30, *THREE)))
    assert chain.state.upgrade == Upgrade(2, Height(30))


def to_last_known_height() -> tuple[Chain, list[State]]:
    chain = started()
    states = [chain.state]
    for transaction in (chain.tx("other", upgrade(chain, 6, *THREE)),), (), (), ():
        chain.block(*transaction)
        states.append(chain.state)
    assert chain.state.height == 5
    return chain, states


def test_who_does_not_know_the_version_follows_up_to_it_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on with rules that this software does not know: it must not call their block wrong, or right."""
    chain, _ = to_last_known_height()
    stopped = chain.state
    with monkeypatch.context() as newer:
        newer.setattr(versions, "KNOWN_VERSIONS", frozenset({1, 2}))
        chain.clock += 1000
        block = build.build_transaction_block(stopped, key("v0"), chain.certificate(), []).block
        rules.apply_block(stopped, block)
    with pytest.raises(WrongChainError, match=r"from height 6 on .* version 2; this software knows up to 1.*install"):
        rules.apply_block(stopped, block)


class _Quiet:
    """Links and work that say nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_named: None


class _Clock:
    def now_ms(self) -> Milliseconds:
        return Milliseconds(2**50)


async def test_the_node_stops_with_a_sentence_before_that_height_and_votes_nothing() -> None:
    chain, states = to_last_known_height()
    store = ChainStore(Memory(), chain.genesis)
    for block, state in zip(chain.blocks[:-1], states[:-1], strict=True):
        store.commit(block, make_certificate(state, chain.clock, chain.names), state, [])
    driver = Driver(store, key("v0"), Pending(_Clock(), 100), _Clock())
    driver.connect(cast(Links, _Quiet()), _Quiet(), lambda _node, _progress: None)
    running = asyncio.create_task(driver.run())
    await driver.take_final([(chain.blocks[-1], make_certificate(states[-1], chain.clock, chain.names))])
    async with asyncio.timeout(60):
        with pytest.raises(WrongChainError, match="It has stopped at height 5"):
            await running
    assert store.state.height == 5
    assert driver.machine.round == -1
    # Started again with the same software it says the same; with one that knows the version it goes on.
    again = Driver(store, key("v0"), Pending(_Clock(), 100), _Clock())
    again.connect(cast(Links, _Quiet()), _Quiet(), lambda _node, _progress: None)
    async with asyncio.timeout(60):
        with pytest.raises(WrongChainError, match="install a release that knows version 2"):
            await again.run()
    assert again.machine.round == -1

"""services.rpc.convert_chain: what a node says is what its client reads, and nothing else gets through."""

from __future__ import annotations

import pytest

from core.chain.block import Certificate, CommitSignature, Receipt, Vm
from core.chain.transaction import Activation, TaskSpec
from core.errors import LimitError, MalformedError
from core.ids import (
    AccountId,
    Amount,
    BlockHash,
    Correct,
    Digest,
    Height,
    Milliseconds,
    ModelCommitment,
    NodeId,
    PartsPerMillion,
    Signature,
    StateRoot,
    TaskId,
)
from services.rpc import convert_chain as convert
from services.rpc.views import AccountView, EntryView, MarketView, TaskPhase, TaskView, Tip, TradePhase, TradeView


def spec() -> TaskSpec:
    return TaskSpec(
        name="digits", features=64, classes=10, samples=300, hidden=(16,), activation=Activation.RELU, weight_bits=10,
        feature_scale_micro=7_937_500, test_root=Digest(b"r" * 32), test_blobs=(Digest(b"1" * 32), Digest(b"2" * 32)),
        public_key_blob=Digest(b"k" * 32), practice_blob=Digest(b"p" * 32), endpoint="127.0.0.1:9000", leak_bits=2112,
    )  # fmt: skip


def task() -> TaskView:
    vm = Vm(ModelCommitment(b"w" * 32), Digest(b"g" * 32), Receipt(Digest(b"o" * 32), Signature(b"s" * 64)))
    return TaskView(
        task_id=TaskId(b"t" * 32), requester=AccountId(b"q" * 32), spec=spec(), reward=Amount(1000), bond=Amount(1000),
        min_pool_bond=Amount(50), task_nonce=b"n" * 32, published_height=Height(3), phase=TaskPhase.EVALUATION,
        expires_ms=Milliseconds(99), stored_by=(NodeId(b"v" * 32),), start_ms=Milliseconds(5),
        entry_close_ms=Milliseconds(6), commit_close_ms=Milliseconds(7), claim_close_ms=Milliseconds(8),
        entries=(
            EntryView(AccountId(b"1" * 32), Amount(60), "h:1"),
            EntryView(AccountId(b"2" * 32), Amount(61), "h:2", ModelCommitment(b"w" * 32), Correct(0), vm),
        ),
    )  # fmt: skip


def test_a_task_survives_the_wire() -> None:
    assert convert.task_from_proto(convert.task_to_proto(task())) == task()


def test_a_tip_survives_the_wire() -> None:
    certificate = Certificate(
        Height(4), 1, BlockHash(b"b" * 32), (CommitSignature(NodeId(b"v" * 32), Milliseconds(1), Signature(b"s" * 64)),)
    )
    for cert in (None, certificate):
        tip = Tip(
            Height(4), BlockHash(b"b" * 32), StateRoot(b"r" * 32), cert, Milliseconds(17), None, False, Amount(5), Amount(1),
            3, 0, 2,
        )  # fmt: skip
        assert convert.tip_from_proto(convert.tip_to_proto(tip)) == tip


@pytest.mark.parametrize(("version", "said"), [(0, "versions begin with 1"), (65_536, "at most 65535")])
def test_a_version_that_no_header_can_name_is_refused(version: int, said: str) -> None:
    message = convert.tip_to_proto(
        Tip(
            Height(0), BlockHash(bytes(32)), StateRoot(bytes(32)), None, Milliseconds(0), None, False, Amount(0), Amount(0), 0,
            0, 1,
        )
    )  # fmt: skip
    message.protocol_version = version
    with pytest.raises((MalformedError, LimitError), match=said):
        convert.tip_from_proto(message)


def test_accounts_markets_and_trades_survive_the_wire() -> None:
    account = AccountView(Amount(7), 2, PartsPerMillion(500_000), "alice", Height(9))
    assert convert.account_from_proto(convert.account_to_proto(account)) == account
    market = MarketView(Height(2), Amount(0), Amount(4), PartsPerMillion(1))
    assert convert.market_from_proto(convert.market_to_proto(market)) == market
    trade = TradeView(
        Digest(b"t" * 32), AccountId(b"p" * 32), AccountId(b"q" * 32), Digest(b"d" * 32), Amount(5), Amount(6),
        PartsPerMillion(700_000), PartsPerMillion(500_000), TradePhase.DELIVERY, Height(3), Height(4),
        (AccountId(b"m" * 32),), 10, 4, Milliseconds(77),
    )  # fmt: skip
    assert convert.trade_from_proto(convert.trade_to_proto(trade)) == trade


def test_wrong_lengths_unknown_enums_and_negative_amounts_are_named() -> None:
    message = convert.task_to_proto(task())
    message.task_id = b"short"
    with pytest.raises(MalformedError, match="task_id: 5 bytes, expected 32"):
        convert.task_from_proto(message)
    message = convert.task_to_proto(task())
    message.reward = -1
    with pytest.raises(MalformedError, match="reward: -1 is negative"):
        convert.task_from_proto(message)
    message = convert.task_to_proto(task())
    message.ClearField("phase")
    with pytest.raises(MalformedError, match="phase: unknown value 0"):
        convert.task_from_proto(message)
    message = convert.task_to_proto(task())
    message.spec.name = "x" * 65
    with pytest.raises(LimitError, match=r"TaskSpec.name"):
        convert.task_from_proto(message)

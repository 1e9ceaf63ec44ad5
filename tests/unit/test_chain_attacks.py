"""Blocks, transactions and evidence that must be refused, each with the reason it is refused for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from core.chain import build, claims, rules, verify
from core.chain.block import (
    Accuracy,
    Block,
    BlockKind,
    Body,
    Header,
    Outcome,
    OutcomeKind,
    Payout,
    Receipt,
    SignedHeader,
)
from core.chain.state import Standing, state_root
from core.chain.transaction import (
    Claim,
    Commit,
    EnterTask,
    Equivocation,
    Payload,
    PoolFault,
    PublishTask,
    Refusal,
    Stored,
    Transfer,
    VerdictEquivocation,
    Verdicts,
)
from core.chain.vote import SignedVerdict, Step, VerdictKind, Vote
from core.codec import encode
from core.crypto.signing import sign
from core.errors import BlockError, PoflError, TransactionError, WrongChainError
from core.ids import (
    Amount,
    BlockHash,
    Correct,
    Height,
    Milliseconds,
    ModelCommitment,
    NodeId,
    Signature,
    StateRoot,
    TaskId,
)
from tests.chainkit import (
    FUNDS,
    Chain,
    account,
    key,
    make_certificate,
    make_claim,
    make_commitment,
    make_genesis,
    make_spec,
    make_verdict,
    make_vm,
    signed_verdict,
    some,
)


def refused(chain: Chain, block: Block, match: str, error: type[PoflError] = BlockError) -> None:
    before = state_root(chain.state)
    with pytest.raises(error, match=match):
        rules.apply_block(chain.state, block)
    assert state_root(chain.state) == before


def started() -> Chain:
    chain = Chain()
    chain.block()
    chain.clock += 1000
    return chain


def made(chain: Chain, author: str = "v0", **changes: object) -> Block:
    """A transaction block with some header fields changed and signed again."""
    built = build.build_transaction_block(chain.state, key("v0"), chain.certificate(), []).block
    header = replace(built.header.decoded(), author_id=account(author), **changes)  # type: ignore[arg-type]
    return build.make_block(key(author), header, built.decoded_body())


# -- any block ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"timestamp_ms": 1}, "its certificate gives"),
        ({"timestamp_ms": 1_800_000_001_001}, "its certificate gives"),
        ({"parent_state_root": StateRoot(bytes(32))}, "parent_state_root"),
        ({"prev_hash": BlockHash(bytes(32))}, "the tip is"),
        ({"height": Height(3)}, "the tip is"),
        ({"merkle_root": some("other")}, "the body's root"),
        ({"version": 2}, "protocol version 2"),
        ({"kind": BlockKind.VOID}, "no work height"),
        ({"kind": BlockKind.WORK}, "no work height"),
        ({"task_id": TaskId(bytes(32))}, "fields of another kind"),
        ({"author": "pool0"}, "is no validator"),
    ],
)
def test_headers_that_lie(changes: dict[str, object], match: str) -> None:
    chain = started()
    refused(chain, made(chain, **changes), match)  # type: ignore[arg-type]


def test_a_block_of_another_chain() -> None:
    other = Chain(make_genesis(4, replace(make_genesis().params, tick_ms=600)))
    other.block()
    other.clock += 1000
    refused(started(), made(other), "of chain", WrongChainError)


def test_a_header_signed_by_another_key() -> None:
    chain = started()
    block = made(chain)
    forged = SignedHeader(block.header.header, sign(key("v1"), b"pofl/header-signature/1", block.header.header))
    refused(chain, Block(forged, block.body), "does not verify")


def test_a_header_signature_does_not_serve_as_another_kind_of_signature() -> None:
    chain = started()
    block = made(chain)
    moved = SignedHeader(block.header.header, sign(key("v0"), b"pofl/vote/1", block.header.header))
    refused(chain, Block(moved, block.body), "does not verify")


def test_trailing_bytes_and_oversize() -> None:
    chain = started()
    block = made(chain)
    refused(chain, Block(block.header, block.body + b"\0"), "bytes follow")
    refused(chain, Block(block.header, bytes(1024 * 1024 + 1)), "at most 1048576")
    refused(chain, Block(SignedHeader(bytes(5000), Signature(bytes(64))), block.body), "at most 4096")


# -- certificates ------------------------------------------------------------------------------------------------------


def with_certificate(chain: Chain, names: list[str], change: Callable[[list[object]], None] | None = None) -> Block:
    certificate = make_certificate(chain.state, chain.clock, names)
    if change is not None:
        signatures: list[object] = list(certificate.signatures)
        change(signatures)
        certificate = replace(certificate, signatures=tuple(signatures))  # type: ignore[arg-type]
    block = made(chain)
    return build.make_block(key("v0"), block.header.decoded(), Body(certificate, (), ()))


def test_certificates_that_prove_nothing() -> None:
    chain = started()
    chain.apply(made(chain))
    chain.clock += 1000
    good = ["v0", "v1", "v2"]
    rules.apply_block(chain.state, with_certificate(chain, good))
    refused(chain, with_certificate(chain, ["v0", "v1"]), "2/3 are needed")
    refused(chain, with_certificate(chain, ["v0", "v1", "pool0"]), "is no validator of that height")
    refused(chain, with_certificate(chain, good, lambda s: s.append(s[-1])), "ascending order, each once")
    refused(chain, with_certificate(chain, good, lambda s: s.reverse()), "ascending order, each once")

    def later(signatures: list[object]) -> None:
        signatures[0] = replace(signatures[0], time_ms=Milliseconds(chain.clock + 1))  # type: ignore[type-var]

    refused(chain, with_certificate(chain, good, later), "does not verify")


def test_a_certificate_for_another_block_or_none_at_all() -> None:
    chain = started()
    chain.apply(made(chain))
    block = made(chain)
    old = Chain()
    old.block()
    certificate = make_certificate(old.state, chain.clock, chain.names)
    refused(chain, build.make_block(key("v0"), block.header.decoded(), Body(certificate, (), ())), "another block")
    refused(chain, build.make_block(key("v0"), block.header.decoded(), Body(None, (), ())), "carries no certificate")


def test_one_wrong_clock_cannot_move_block_time() -> None:
    chain = started()
    votes = []
    for name, time_ms in zip(chain.names, (0, 1000, 2000, 2**60), strict=True):
        at = Milliseconds(chain.clock + time_ms if time_ms < 2**60 else time_ms)
        vote = Vote(chain.state.chain_id, chain.state.height, 0, Step.PRECOMMIT, chain.state.tip.block_hash, at, node(name))
        votes.append((vote, build.make_vote(key(name), vote)))
    found = rules.next_time(chain.state, build.make_certificate(votes))
    assert chain.clock <= found <= chain.clock + 2000


def node(name: str) -> NodeId:
    return NodeId(key(name).public_key)


# -- work and void blocks ----------------------------------------------------------------------------------------------


def spoil(name: str, value: object) -> Callable[[dict[str, object]], None]:
    def change(parts: dict[str, object]) -> None:
        parts[name] = value(parts[name]) if callable(value) else value

    return change


def more(payouts: object) -> tuple[Payout, ...]:
    assert isinstance(payouts, tuple)
    return (Payout(payouts[0].account, Amount(payouts[0].amount + 1)), *payouts[1:])


def negative(payouts: object) -> tuple[Payout, ...]:
    assert isinstance(payouts, tuple)
    return (Payout(payouts[0].account, Amount(payouts[0].amount + 5)), *payouts[1:], Payout(account("x"), Amount(-5)))


def twice(payouts: object) -> tuple[Payout, ...]:
    assert isinstance(payouts, tuple)
    half = payouts[0].amount // 2
    return (Payout(payouts[0].account, half), Payout(payouts[0].account, payouts[0].amount - half), *payouts[1:])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (spoil("payouts", more), "payouts sum to"),
        (spoil("payouts", negative), "must be positive"),
        (spoil("payouts", twice), "paid twice"),
        (spoil("payouts", ()), "payouts sum to 0"),
        (spoil("accuracy", Accuracy(Correct(951), 1000)), "accuracy"),
        (spoil("accuracy", Accuracy(Correct(950), 951)), "accuracy"),
        (spoil("vm", lambda vm: replace(vm, garbled_circuit_digest=some("x"))), "is not that of the claim"),
        (spoil("vm", lambda vm: replace(vm, model_commitment=ModelCommitment(some("x")))), "is not that of the claim"),
        (spoil("task_id", TaskId(bytes(32))), "not the current one"),
        (spoil("time_ms", lambda t: t + 1), "its certificate gives"),
        (spoil("parent_state_root", StateRoot(bytes(32))), "parent_state_root"),
    ],
)
def test_work_blocks_that_lie(change: Callable[[dict[str, object]], None], match: str) -> None:
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=950)
    refused(chain, chain.work_block("pool1", change), match)


def test_a_copied_work_block_is_worthless() -> None:
    """Another pool signs the winner's header: accuracy and vm are not those of its own claim."""
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=950)
    block = chain.work_block("pool1")
    header = replace(block.header.decoded(), author_id=account("pool0"))
    refused(chain, build.make_block(key("pool0"), header, block.decoded_body()), "accuracy")


def test_no_transaction_block_at_a_work_height_and_no_transactions_in_a_work_block() -> None:
    chain = Chain()
    chain.to_work_height(pool0=900)
    with pytest.raises(BlockError, match="is a work height"):
        build.build_transaction_block(chain.state, key("v0"), chain.certificate(), [])
    block = chain.work_block("pool0")
    body, header = block.decoded_body(), block.header.decoded()
    carried = (encode(chain.tx("other", Transfer(account("x"), Amount(1)))),)
    header = replace(header, merkle_root=verify.body_root(body.payouts, carried))
    refused(chain, build.make_block(key("pool0"), header, replace(body, transactions=carried)), "transactions wait")
    plain = Header(
        1, chain.state.chain_id, header.height, header.prev_hash, verify.body_root((), ()), header.parent_state_root,
        header.timestamp_ms, BlockKind.TRANSACTION, None, None, None, (), account("v0"),
    )  # fmt: skip
    refused(chain, build.make_block(key("v0"), plain, Body(body.parent_certificate, (), ())), "but it is a work height")


def test_outcomes_that_do_not_list_the_claims() -> None:
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=950)
    ranked = [e.claim.vm.model_commitment for e in chain.state.work_claims() or () if e.claim is not None]
    kinds = OutcomeKind
    for outcomes in (
        [Outcome(ranked[0], kinds.REFUTED)],
        [Outcome(ranked[1], kinds.REFUTED), Outcome(ranked[0], kinds.REFUTED)],
        [Outcome(ranked[1], kinds.DEAD)],
    ):
        refused(chain, chain.void_block(outcomes), "in rank order")
    goes_on = [Outcome(ranked[0], kinds.DEAD), Outcome(ranked[1], kinds.SKIPPED)]
    refused(chain, chain.void_block(goes_on), "goes on after a dead claim")
    refused(chain, chain.void_block([]), "lacks its own")
    refused(chain, chain.void_block([Outcome(ranked[0], kinds.DEAD)], author="pool0"), "is no validator")


# -- transactions ------------------------------------------------------------------------------------------------------


def test_replays() -> None:
    chain = started()
    tx = chain.tx("other", Transfer(account("x"), Amount(5)))
    chain.block(tx)
    assert chain.refused(tx) == Refusal.BAD_NONCE
    foreign = Chain(make_genesis(3)).tx("other", Transfer(account("x"), Amount(5)), nonce=1)
    assert chain.refused(foreign) == Refusal.WRONG_CHAIN
    assert chain.refused(chain.tx("other", Transfer(account("x"), Amount(5)), nonce=3)) == Refusal.BAD_NONCE


def test_a_block_that_carries_a_bad_transaction_is_refused_whole() -> None:
    chain = started()
    good = encode(chain.tx("other", Transfer(account("x"), Amount(5))))
    for bad, match in ((good, "nonce 0"), (b"\0", "truncated"), (good + b"\0", "bytes follow")):
        block = made(chain)
        body = replace(block.decoded_body(), transactions=(good, bad))
        header = replace(block.header.decoded(), merkle_root=verify.body_root((), body.transactions))
        refused(chain, build.make_block(key("v0"), header, body), match)


@pytest.mark.parametrize(
    ("sender", "payload", "fee", "reason"),
    [
        ("other", Transfer(account("x"), Amount(FUNDS)), 1, Refusal.INSUFFICIENT_FUNDS),
        ("other", Transfer(account("x"), Amount(0)), 1, Refusal.OUT_OF_RANGE),
        ("other", Transfer(account("x"), Amount(-5)), 1, Refusal.OUT_OF_RANGE),
        ("other", Transfer(account("x"), Amount(5)), 0, Refusal.FEE_TOO_LOW),
        ("other", Transfer(account("x"), Amount(5)), -7, Refusal.FEE_TOO_LOW),
        ("v0", Stored(TaskId(bytes(32))), 0, Refusal.UNKNOWN_TASK),
        ("pool0", EnterTask(TaskId(bytes(32)), Amount(5), "a:1"), 1, Refusal.UNKNOWN_TASK),
        ("v0", Verdicts(Height(1), some("z"), ()), 0, Refusal.EXPIRED),
    ],
)
def test_refusals(sender: str, payload: Payload, fee: int, reason: Refusal) -> None:
    chain = started()
    assert chain.refused(chain.tx(sender, payload, fee=fee)) == reason


def test_a_transaction_signed_by_another() -> None:
    chain = started()
    tx = chain.tx("other", Transfer(account("x"), Amount(5)))
    forged = replace(tx, signature=sign(key("x"), b"pofl/transaction-signature/1", tx.transaction))
    assert chain.refused(forged) == Refusal.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"reward": 0, "bond": 0}, "must be at least 1000"),
        ({"reward": -5}, "must be at least 1000"),
        ({"bond": 999}, "below the reward"),
        ({"min_pool_bond": 49}, "least share of the reward"),
        ({"expires_ms": 1}, "expired"),
    ],
)
def test_tasks_that_cannot_be(changes: dict[str, int], match: str) -> None:
    chain = started()
    good = PublishTask(make_spec(chain.state.params), Amount(1000), Amount(1000), Amount(50), some("n"), Milliseconds(2**62))
    with pytest.raises(TransactionError, match=match):
        chain.block(chain.tx("requester", replace(good, **changes)))  # type: ignore[arg-type]
    chain.nonces.clear()
    spec = make_spec(chain.state.params)
    for bad, why in (
        (replace(spec, leak_bits=spec.leak_bits - 1), "declare that"),
        (replace(spec, test_root=some("x")), "not the root"),
        (replace(spec, classes=1), "two classes"),
        (replace(spec, samples=0), "one test row"),
        (replace(spec, hidden=(16, 0)), "no units"),
    ):
        with pytest.raises(TransactionError, match=why):
            chain.block(chain.tx("requester", replace(good, spec=bad)))
        chain.nonces.clear()


def test_stored_counts_each_validator_once() -> None:
    chain = started()
    payload = PublishTask(make_spec(chain.state.params), Amount(1000), Amount(1000), Amount(50), some("n"), Milliseconds(2**62))
    chain.block(chain.tx("requester", payload))
    task = chain.state.live[0]
    assert chain.refused(chain.tx("other", Stored(task), fee=0)) == Refusal.NOT_A_VALIDATOR
    chain.block(chain.tx("v0", Stored(task), fee=0))
    assert chain.refused(chain.tx("v0", Stored(task), fee=0)) == Refusal.DUPLICATE


def test_a_pool_cannot_choose_its_model_late_or_claim_what_it_did_not_commit() -> None:
    chain = Chain()
    task = chain.publish()
    early = EnterTask(task, Amount(100_000), "a:1")
    assert chain.state.windows(task) is None
    chain.block()
    commit = Commit(task, make_commitment(chain.state, task, "pool0", "m"))
    assert chain.refused(chain.tx("pool0", commit)) == Refusal.TOO_EARLY
    assert chain.refused(chain.tx("pool0", replace(early, bond=Amount(49_999)))) == Refusal.OUT_OF_RANGE
    chain.block(chain.tx("pool0", early), chain.tx("pool1", early))
    assert chain.refused(chain.tx("pool0", early)) == Refusal.DUPLICATE
    windows = chain.state.windows(task)
    assert windows is not None
    chain.until(windows.entry_close_ms)
    assert chain.refused(chain.tx("pool2", early)) == Refusal.WRONG_PHASE
    assert chain.refused(chain.tx("pool2", commit)) == Refusal.NOT_ENTERED
    chain.block(chain.tx("pool0", commit))
    assert chain.refused(chain.tx("pool0", Commit(task, ModelCommitment(some("m2"))))) == Refusal.DUPLICATE
    vm = make_vm(chain.state, task, "pool0", "m")
    assert chain.refused(chain.tx("pool0", Claim(task, Correct(5), vm, some("m")))) == Refusal.TOO_EARLY
    chain.until(windows.commit_close_ms)
    assert chain.refused(chain.tx("pool1", commit)) == Refusal.WRONG_PHASE
    other = make_vm(chain.state, task, "pool0", "m2")
    assert chain.refused(chain.tx("pool0", Claim(task, Correct(5), other, some("m2")))) == Refusal.NOT_COMMITTED
    stolen = make_vm(chain.state, task, "pool1", "m")
    assert chain.refused(chain.tx("pool1", Claim(task, Correct(5), stolen, some("m")))) == Refusal.NOT_COMMITTED
    assert chain.refused(chain.tx("pool0", Claim(task, Correct(1001), vm, some("m")))) == Refusal.OUT_OF_RANGE
    for bad in (
        make_vm(chain.state, task, "pool0", "m", requester="pool0"),
        replace(vm, garbled_circuit_digest=some("x")),
        replace(vm, receipt=Receipt(some("x"), vm.receipt.signature)),
        replace(vm, receipt=make_vm(chain.state, task, "pool1", "m").receipt),
        replace(vm, receipt=make_vm(chain.state, TaskId(some("other task")), "pool0", "m").receipt),
    ):
        assert chain.refused(chain.tx("pool0", Claim(task, Correct(5), bad, some("m")))) == Refusal.BAD_RECEIPT
    chain.block(chain.tx("pool0", Claim(task, Correct(5), vm, some("m"))))
    assert chain.refused(chain.tx("pool0", Claim(task, Correct(6), vm, some("m")))) == Refusal.DUPLICATE
    chain.until(windows.claim_close_ms)
    assert rules.is_work_height(chain.state)


def test_a_copied_commitment_cannot_be_claimed() -> None:
    """Commitments are public before claims open. A pool that copies a rival's is evaluated, honestly, and has her receipt for
    it; claiming first it would keep the rival's claim out, at the price of a tenth of its bond."""
    chain = Chain()
    task = chain.publish()
    chain.enter(task, "pool0", "pool1")
    c_w = make_commitment(chain.state, task, "pool0", "m")
    chain.block(chain.tx("pool0", Commit(task, c_w)), chain.tx("pool1", Commit(task, c_w)))
    windows = chain.state.windows(task)
    assert windows is not None
    chain.until(windows.commit_close_ms)
    own = make_vm(chain.state, task, "pool0", "m")
    message = claims.receipt_message(
        chain.state.chain_id, task, account("pool1"), c_w, own.garbled_circuit_digest, own.receipt.output_keys_digest
    )
    copy = replace(own, receipt=replace(own.receipt, signature=sign(key("requester"), b"pofl/receipt/1", message)))
    for shown in ("m", "another"):
        assert chain.refused(chain.tx("pool1", Claim(task, Correct(1000), copy, some(shown)))) == Refusal.NOT_COMMITTED
    chain.block(chain.tx("pool0", make_claim(chain.state, task, "pool0", "m", 900)))
    chain.until(windows.claim_close_ms)
    ranked = chain.state.work_claims()
    assert ranked is not None
    assert [entry.pool for entry in ranked] == [account("pool0")]


# -- evidence ----------------------------------------------------------------------------------------------------------


def test_two_work_headers_on_one_parent_burn_the_bond_once() -> None:
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=950)
    first = chain.work_block("pool1")
    second = chain.work_block("pool1")
    other = chain.work_block("pool0")
    chain.apply(first)
    for a, b in ((first, first), (first, other), (first, chain.blocks[0])):
        assert chain.refused(chain.tx("other", PoolFault(a.header, b.header), fee=0)) == Refusal.BAD_EVIDENCE
    burned = chain.state.burned
    chain.block(chain.tx("other", PoolFault(first.header, second.header), fee=0))
    assert chain.state.burned == burned + 100_000 + 50_000  # the bond, and the auditors' share that nobody claimed
    entry = chain.state.entry(first.header.decoded().task_id or b"", account("pool1"))
    assert entry is not None
    assert entry.standing is Standing.FAULTY
    assert chain.refused(chain.tx("other", PoolFault(second.header, first.header), fee=0)) == Refusal.DUPLICATE


def test_work_headers_of_no_task_are_no_evidence() -> None:
    """Anybody can sign two of them: they must be refused like any other bad evidence, in a block too."""
    chain = Chain()
    chain.to_work_height(pool0=900)
    header = chain.work_block("pool0").header.decoded()
    signed = [build.sign_header(key("pool0"), replace(header, task_id=None, timestamp_ms=Milliseconds(n))) for n in (1, 2)]
    chain.apply(chain.work_block("pool0"))
    assert chain.refused(chain.tx("nobody", PoolFault(*signed), fee=0)) == Refusal.BAD_EVIDENCE


def test_equivocation_by_votes_is_punished_once_and_only_on_proof() -> None:
    chain = started()
    vote = Vote(chain.state.chain_id, Height(9), 3, Step.PREVOTE, BlockHash(some("a")), Milliseconds(0), node("v1"))
    signed = build.make_vote(key("v1"), vote)

    def against(other: Vote, signer: str = "v1") -> Equivocation:
        return Equivocation(signed, build.make_vote(key(signer), other))

    two = replace(vote, block_hash=BlockHash(some("b")))
    for bad in (
        against(vote),
        against(replace(two, round=4)),
        against(replace(two, step=Step.PRECOMMIT)),
        against(replace(two, height=Height(10))),
        against(replace(two, validator=node("v2")), "v2"),
        against(two, "v2"),
    ):
        assert chain.refused(chain.tx("other", bad, fee=0)) == Refusal.BAD_EVIDENCE
    chain.block(chain.tx("other", against(two), fee=0))
    assert [v.has_equivocated for v in chain.state.validators] == [v.node_id == node("v1") for v in chain.state.validators]
    assert chain.refused(chain.tx("other", against(two), fee=0)) == Refusal.DUPLICATE


def test_equivocation_by_verdicts_and_its_cost() -> None:
    chain = Chain()
    chain.to_work_height(pool0=900)
    at_work = chain.state
    entry = (at_work.work_claims() or ())[0]
    valid, fault = (make_verdict(at_work, entry, "v1", k) for k in (VerdictKind.VALID, VerdictKind.POOL_FAULT))
    gone = make_verdict(at_work, entry, "v1", VerdictKind.UNAVAILABLE)

    def pair(a: object, b: object) -> VerdictEquivocation:
        return VerdictEquivocation(signed_verdict(a, "v1"), signed_verdict(b, "v1"))  # type: ignore[arg-type]

    chain.apply(chain.work_block("pool0"))
    assert chain.refused(chain.tx("other", pair(gone, valid), fee=0)) == Refusal.BAD_EVIDENCE
    assert chain.refused(chain.tx("other", pair(valid, valid), fee=0)) == Refusal.BAD_EVIDENCE
    audits: list[SignedVerdict] = [signed_verdict(make_verdict(at_work, entry, v, VerdictKind.VALID), v) for v in ("v0", "v1")]
    chain.block(
        chain.tx("v0", Verdicts(Height(at_work.height + 1), some(b"z".hex()), tuple(audits)), fee=0),
        chain.tx("other", pair(valid, fault), fee=0),
    )
    assert [v.has_equivocated for v in chain.state.validators].count(True) == 1


def test_auditors_are_paid_in_the_next_block_only_by_right_tags_of_their_own() -> None:
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=800)
    at_work = chain.state
    winner, lower = at_work.work_claims() or ()
    chain.apply(chain.work_block("pool0"))
    height, z = Height(at_work.height + 1), some(b"z".hex())
    own = signed_verdict(make_verdict(at_work, winner, "v0", VerdictKind.VALID), "v0")
    copied = replace(make_verdict(at_work, winner, "v0", VerdictKind.VALID), validator=node("v1"))
    forged = signed_verdict(make_verdict(at_work, winner, "v2", VerdictKind.VALID), "v1")
    wrong_count = signed_verdict(make_verdict(at_work, winner, "v2", VerdictKind.VALID, correct=901), "v2")
    on_lower = signed_verdict(make_verdict(at_work, lower, "v3", VerdictKind.VALID), "v3")
    for bad in ((own, forged), (own, wrong_count), (own, own)):
        reason = chain.refused(chain.tx("v0", Verdicts(height, z, bad), fee=0))
        assert reason == (Refusal.DUPLICATE if bad[1] is own else Refusal.BAD_EVIDENCE)
    chain.block(chain.tx("v0", Verdicts(height, z, (own, signed_verdict(copied, "v1"), on_lower)), fee=0))
    assert [chain.state.account(account(v)).balance for v in ("v1", "v2", "v3")] == [0, 0, 0]
    assert chain.state.account(account("v0")).balance >= 12_500
    assert chain.state.pot is None
    late = signed_verdict(make_verdict(at_work, winner, "v2", VerdictKind.VALID), "v2")
    assert chain.refused(chain.tx("v2", Verdicts(height, z, (late,)), fee=0)) == Refusal.DUPLICATE

"""What holds for every sequence of blocks, every table and every set of verdicts."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from core.chain import build, claims, ledger, merkle, rules
from core.chain.block import Block, Outcome, OutcomeKind, SignedHeader
from core.chain.claims import ClaimStatus
from core.chain.state import Account, decode_state, encode_state, genesis_state, state_root, total_supply
from core.chain.table import Table
from core.chain.transaction import (
    Commit,
    EnterTask,
    JoinValidator,
    LeaveValidator,
    Payload,
    PublishTask,
    RegisterProvider,
    Stored,
    Transfer,
)
from core.chain.vote import Verdict, VerdictKind
from core.errors import PoflError
from core.ids import AccountId, Amount, Correct, Digest, Height, Milliseconds, ModelCommitment, NodeId, Signature, TaskId
from tests.chainkit import Chain, account, key, make_claim, make_commitment, make_genesis, make_spec, some

Steps = list[tuple[bytes, int | None]]
keys = st.binary(min_size=1, max_size=2)
changes = st.lists(st.tuples(keys, st.none() | st.integers(0, 99)), max_size=40)


@given(changes, changes)
def test_a_table_is_a_dictionary_and_the_old_one_stays(first: Steps, then: Steps) -> None:
    def run(table: Table[Account], twin: dict[bytes, Account], steps: Steps) -> Table[Account]:
        for name, value in steps:
            if value is not None:
                table, twin[name] = table.put(name, Account(Amount(value), 0)), Account(Amount(value), 0)
            elif name in twin:
                table = table.drop(name)
                del twin[name]
        return table

    twin: dict[bytes, Account] = {}
    table = run(Table(Account), twin, first)
    root, before = table.root, dict(twin)
    later = run(table, twin, then)
    assert dict(table) == before
    assert table.root == root == Table(Account, before).root
    assert dict(later) == twin
    assert later.root == Table(Account, dict(reversed(twin.items()))).root
    for name in twin:
        leaf, index, size, path = later.proof(name)
        merkle.verify_proof(later.root, leaf, index, size, path)


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**6), min_size=1, max_size=30).filter(any))
def test_payouts_sum_to_the_whole_and_follow_the_weights(total: int, weights: list[int]) -> None:
    shares = ledger.split_payout(Amount(total), weights)
    assert sum(shares) == total
    assert all(abs(s - total * w / sum(weights)) <= 1 for s, w in zip(shares, weights, strict=True))


@given(st.integers(0, 10**15))
def test_a_reward_is_divided_without_rest(reward: int) -> None:
    parts = ledger.divide_reward(Amount(reward), make_genesis().params)
    assert parts.burned + parts.auditors + parts.payouts == reward
    assert min(parts.burned, parts.auditors, parts.payouts) >= 0


finding = st.tuples(st.integers(0, 6), st.sampled_from(VerdictKind))


@given(st.lists(finding, max_size=20), st.lists(finding, max_size=8), st.integers(1, 7))
def test_powers_in_a_tally_only_grow_and_adopted_never_goes_back(
    first: list[tuple[int, VerdictKind]], more: list[tuple[int, VerdictKind]], validators: int
) -> None:
    state = genesis_state(replace(make_genesis(), params=replace(make_genesis().params, audit_ms=16_000).outlasting_stalls()))
    known = tuple(replace(state.validators[0], node_id=NodeId(some(str(i)))) for i in range(validators))
    commitment = ModelCommitment(some("m"))

    def verdicts(found: list[tuple[int, VerdictKind]]) -> list[Verdict]:
        any_ = Verdict(
            some("c"), Height(1), TaskId(some("t")), AccountId(some("p")), commitment, VerdictKind.VALID, Correct(1), "",
            some("tag"), NodeId(some("0")),
        )  # fmt: skip
        return [replace(any_, kind=kind, validator=NodeId(some(str(who)))) for who, kind in found]

    before = claims.tally(verdicts(first), known).get(commitment)
    after = claims.tally(verdicts(first + more), known).get(commitment)
    if before is not None and after is not None:
        assert before.valid <= after.valid
        assert before.pool_fault <= after.pool_fault
        assert before.requester_fault <= after.requester_fault
        assert before.total_in <= after.total_in
        if before.status is ClaimStatus.ADOPTED:
            assert after.status is ClaimStatus.ADOPTED
        if before.status is not ClaimStatus.UNDECIDED:
            assert after.status is not ClaimStatus.UNDECIDED


def anything(chain: Chain, dice: random.Random) -> tuple[str, Payload]:
    """Some transaction by somebody, often a sensible one."""
    state = chain.state
    task = dice.choice([*state.tasks, bytes(32)]) if len(state.tasks) else bytes(32)
    if state.current is not None and dice.random() < 0.8:
        task = state.current
    found = TaskId(task)
    pool, model = f"pool{dice.randrange(4)}", f"m{dice.randrange(4)}"
    amount = Amount(dice.choice([-1, 0, 1, 50_000, 100_000, 10**7]))
    reward = Amount(dice.choice([1, 1000, 1_000_000]))
    spec = make_spec(state.params, "t")
    published = PublishTask(
        spec, reward, Amount(reward * 2), Amount(reward // 20 + 1), some(str(dice.random())), Milliseconds(2**60)
    )
    options: list[tuple[str, Payload]] = [
        ("other", Transfer(account(pool), amount)),
        ("requester", published),
        (dice.choice(chain.names), Stored(found)),
        (pool, EnterTask(found, amount, "a:1")),
        (pool, Commit(found, make_commitment(state, found, pool, model))),
        ("provider", RegisterProvider(Digest(bytes(32)), dice.randrange(3), "p:1")),
    ]
    if len(state.tasks):
        options.append((pool, make_claim(state, found, pool, model, dice.randrange(1200))))
    member = NodeId(account(dice.choice(chain.names)))
    signers = dice.sample(chain.names, 3)
    nonce = state.account(account("other")).nonce
    until = Height(state.height + 5)
    joining = JoinValidator(NodeId(account("other")), 1, Amount(1_000_000), "a:1", nonce, until, ())
    options += [
        ("other", chain.approved(joining, *signers)),
        (pool, chain.approved(LeaveValidator(member, Height(1), "tired", until, ()), *signers)),
    ]
    return dice.choice(options)


def sensible(chain: Chain, dice: random.Random) -> list[tuple[str, Payload]]:
    """What pools do that follow the task: commit, then claim; some forget to."""
    task = chain.state.current_task
    if task is None or task.entry_closed is None:
        return []
    found: list[tuple[str, Payload]] = []
    for pool in (f"pool{i}" for i in range(4)):
        entry = chain.state.entry(task.task_id, account(pool))
        if entry is None or dice.random() < 0.3:
            continue
        if entry.commitment is None:
            found.append((pool, Commit(task.task_id, make_commitment(chain.state, task.task_id, pool, f"model of {pool}"))))
        elif entry.claim is None and task.commit_closed is not None:
            claim = make_claim(chain.state, task.task_id, pool, f"model of {pool}", dice.randrange(1001))
            found.append((pool, claim))
    return found


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_money_is_conserved_and_every_node_computes_the_same(seed: int) -> None:
    dice = random.Random(seed)
    chain = Chain(make_genesis(4, replace(make_genesis().params, audit_ms=12_000)))
    if dice.random() < 0.7:
        chain.enter(chain.publish(), *dice.sample([f"pool{i}" for i in range(4)], dice.randrange(1, 5)))
    for _ in range(30):
        claims_now = chain.state.work_claims()
        if claims_now is None:
            wanted = [anything(chain, dice) for _ in range(dice.randrange(6))] + sensible(chain, dice)
            transactions = [chain.tx(sender, payload) for sender, payload in dict(wanted).items()]
            chain.clock += dice.choice([1, 500, 2000, 4000])
            author = chain.name_of(chain.state.validators[0].node_id)
            built = build.build_transaction_block(chain.state, key(author), chain.certificate(), transactions)
            chain.apply(built.block)
        elif dice.random() < 0.7:
            winner = dice.choice(claims_now)
            chain.apply(chain.work_block(next(f"pool{i}" for i in range(4) if account(f"pool{i}") == winner.pool)))
        else:
            ends = [
                Outcome(e.claim.vm.model_commitment, dice.choice([OutcomeKind.REFUTED, OutcomeKind.SKIPPED]))
                for e in claims_now
                if e.claim is not None
            ]
            chain.apply(chain.void_block(ends, chain.name_of(chain.state.validators[0].node_id)))
    again = decode_state(encode_state(genesis_state(chain.genesis)), chain.genesis)
    for block in chain.blocks:
        again = rules.apply_block(again, block)
        assert total_supply(again) == chain.supply
    assert state_root(again) == state_root(chain.state)
    stored = decode_state(encode_state(chain.state), chain.genesis)
    assert stored == chain.state
    assert state_root(stored) == state_root(chain.state)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_a_block_with_any_flipped_bit_is_refused_and_changes_nothing(seed: int, data: st.DataObject) -> None:
    chain = Chain()
    chain.block(chain.tx("other", Transfer(account("x"), Amount(5))))
    chain.clock += 1000
    tx = chain.tx("other", Transfer(account("x"), Amount(6)))
    good = build.build_transaction_block(chain.state, key("v0"), chain.certificate(), [tx]).block
    parts = [bytearray(good.header.header), bytearray(good.header.signature), bytearray(good.body)]
    which = data.draw(st.integers(0, 2))
    place = data.draw(st.integers(0, len(parts[which]) - 1))
    parts[which][place] ^= 1 << (seed % 8)
    bad = Block(SignedHeader(bytes(parts[0]), Signature(bytes(parts[1]))), bytes(parts[2]))
    root = state_root(chain.state)
    try:
        rules.apply_block(chain.state, bad)
    except PoflError:
        assert state_root(chain.state) == root
        return
    raise AssertionError(f"part {which}, byte {place} may be changed")

"""Light clients: what they believe, and what nobody can make them believe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from core.chain import build, light, proofs
from core.chain.light import LightBlock, Trusted
from core.chain.proofs import Leaf, RecordProof, SetProof
from core.chain.state import Account, Membership, State, Task, ValidatorSet, genesis_state, state_root
from core.chain.table import Table
from core.chain.transaction import JoinValidator, LeaveValidator, Transfer
from core.chain.vote import Step, Vote
from core.codec import decode, encode
from core.errors import BlockError, CryptoError, InputError, NotFoundError, PoflError, WrongChainError
from core.ids import AccountId, Amount, BlockHash, Height, Milliseconds, NodeId, TxId
from tests.chainkit import Chain, account, key, make_certificate, make_genesis, some

ROOM = replace(make_genesis().params, audit_ms=12_000)
BOND = Amount(1_000_000)


def node(name: str) -> NodeId:
    return NodeId(account(name))


class World:
    """A chain and the light block of each of its heights."""

    def __init__(self) -> None:
        self.chain = Chain(make_genesis(4, ROOM))
        self.states: list[State] = [self.chain.state]
        self.blocks: list[LightBlock] = []
        self.asked: list[int] = []

    def block(self, *transactions: object) -> None:
        before = self.chain.state
        self.chain.block(*transactions, author=self.chain.name_of(before.validators[0].node_id))  # type: ignore[arg-type]
        after = self.chain.state
        certificate = make_certificate(after, self.chain.clock + 5, self.chain.voters)
        self.blocks.append(LightBlock(self.chain.blocks[-1].header, certificate, proofs.prove_set(before)))
        self.states.append(after)

    def join(self, name: str) -> None:
        state = self.chain.state
        signers = [self.chain.name_of(v.node_id) for v in state.validators]
        nonce, until = state.account(account(name)).nonce, Height(state.height + 5)
        payload = self.chain.approved(JoinValidator(node(name), 1, BOND, "a:1", nonce, until, ()), *signers)
        self.block(self.chain.tx(name, payload))
        self.block()

    def leave(self, name: str) -> None:
        state = self.chain.state
        signers = [self.chain.name_of(v.node_id) for v in state.validators]
        since, until = state.memberships[account(name)].since_height, Height(state.height + 5)
        self.block(self.chain.tx("provider", self.chain.approved(LeaveValidator(node(name), since, "", until, ()), *signers)))
        self.block()

    def at(self, height: int) -> LightBlock:
        self.asked.append(height)
        return self.blocks[height - 1]

    def follow(self, trusted: Trusted, target: int) -> Trusted:
        steps = light.follow(trusted, Height(target))
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send(self.at(wanted))
        except StopIteration as done:
            found: Trusted = done.value
            return found


def signed_by(world: World, height: int, names: Sequence[str], block_hash: BlockHash | None = None) -> LightBlock:
    """A height's light block under a certificate of others."""
    real = world.blocks[height - 1]
    chosen = real.header.block_hash if block_hash is None else block_hash
    votes = []
    for name in names:
        vote = Vote(world.chain.state.chain_id, Height(height), 0, Step.PRECOMMIT, chosen, Milliseconds(5), node(name))
        votes.append((vote, build.make_vote(key(name), vote)))
    return replace(real, certificate=build.make_certificate(votes))


def test_from_genesis_to_the_tip_in_one_step_while_the_validators_stay() -> None:
    world = World()
    for _ in range(9):
        world.block()
    trusted = world.follow(light.trust_genesis(world.chain.genesis), 9)
    assert world.asked == [9]
    assert trusted.block_hash == world.chain.state.tip.block_hash
    assert trusted.header is not None
    assert trusted.header.parent_state_root == state_root(world.states[8])


def test_over_the_exchange_of_all_validators() -> None:
    """Nobody of the genesis document votes in the end: the client goes by heights whose sets it can follow."""
    world = World()
    for index in range(4):
        world.join(f"pool{index}")
        world.leave(f"v{index}")
        world.block()
    for _ in range(20):
        world.block()
    tip = world.chain.state.height
    assert {world.chain.name_of(v.node_id) for v in world.chain.state.validators} == {f"pool{i}" for i in range(4)}
    genesis = light.trust_genesis(world.chain.genesis)
    trusted = world.follow(genesis, tip)
    assert trusted.block_hash == world.chain.state.tip.block_hash
    assert {v.node_id for v in trusted.validators} == {v.node_id for v in world.chain.state.validators}
    assert len(set(world.asked)) < tip / 2
    with pytest.raises(BlockError, match="power"):
        light.advance(genesis, world.blocks[-1])
    # Known from elsewhere, the hash of any height is enough.
    at = world.blocks[19]
    known = light.trust_hash(genesis.chain_id, Height(20), at.header.block_hash, at)
    assert world.follow(known, tip).block_hash == trusted.block_hash
    with pytest.raises(BlockError, match="is not the trusted"):
        light.trust_hash(genesis.chain_id, Height(20), BlockHash(some("other")), at)


def test_certificates_that_convince_nobody() -> None:
    world = World()
    for _ in range(4):
        world.block()
    trusted = light.trust_genesis(world.chain.genesis)
    strangers = [f"pool{i}" for i in range(6)]
    tries: list[tuple[LightBlock, str]] = [
        (signed_by(world, 3, ["v0", "v1"]), "power 2 of 4"),
        (signed_by(world, 3, ["v0", "v1", *strangers]), "power 2 of 4"),
        (signed_by(world, 3, strangers), "power 0 of 4"),
        (signed_by(world, 1, ["v0", "v1", "v2", "pool0"]), "is no validator of that height"),
        (signed_by(world, 3, world.chain.names, BlockHash(some("x"))), "for another block"),
        (replace(world.blocks[2], certificate=world.blocks[1].certificate), "for another block"),
        (replace(world.blocks[2], header=world.blocks[1].header), "for another block|validators"),
    ]
    for false, match in tries:
        with pytest.raises(BlockError, match=match):
            light.advance(trusted, false)
    forged = world.blocks[2].certificate
    swapped = replace(forged.signatures[0], signature=forged.signatures[1].signature)
    spoiled = replace(forged, signatures=(swapped, *forged.signatures[1:]))
    with pytest.raises(BlockError):
        light.advance(trusted, replace(world.blocks[2], certificate=spoiled))
    later = light.advance(trusted, world.blocks[2])
    for old in world.blocks[:3]:
        with pytest.raises(BlockError, match="not after"):
            light.advance(later, old)
    other = World()
    other.chain = Chain(make_genesis(4, replace(ROOM, tick_ms=700)))
    other.block()
    with pytest.raises(WrongChainError):
        light.advance(trusted, other.blocks[0])


def test_nobody_can_slip_in_validators() -> None:
    world = World()
    for _ in range(2):
        world.block()
    trusted = light.trust_genesis(world.chain.genesis)
    real = world.blocks[1]
    mine = ValidatorSet((replace(real.proof.next_validators.validators[0], node_id=node("pool0")),))
    for proof in (SetProof(mine, real.proof.path), SetProof(real.proof.next_validators, real.proof.path[:-1])):
        with pytest.raises(BlockError, match="validators"):
            light.advance(trusted, replace(real, proof=proof))


def test_a_node_that_answers_for_another_height_is_found() -> None:
    world = World()
    for _ in range(5):
        world.block()
    steps = light.follow(light.trust_genesis(world.chain.genesis), Height(5))
    assert next(steps) == 5
    with pytest.raises(BlockError, match="asked for block 5, got one of height 4"):
        steps.send(world.blocks[3])


def test_records_are_proven_and_so_is_their_absence() -> None:
    world = World()
    world.chain.publish()
    state = world.chain.state
    root = state_root(state)
    for name in ("requester", "pool3", "v0"):
        proof = decode(RecordProof, encode(proofs.prove_record(state, "accounts", account(name))), proofs.MAX_PROOF)
        assert proofs.check_record(proof, root, Account, account(name)) == state.accounts.get(account(name))
    task = next(iter(state.tasks))
    found = proofs.check_record(proofs.prove_record(state, "tasks", task), root, Task, task)
    assert found == state.tasks[task]
    member = proofs.check_record(proofs.prove_record(state, "memberships", node("v0")), root, Membership, node("v0"))
    assert member == state.memberships[node("v0")]
    for key_ in (bytes(32), b"\xff" * 32, some("nobody"), some("x"), b"\x80"):
        assert proofs.check_record(proofs.prove_record(state, "accounts", key_), root, Account, key_) is None
        assert proofs.check_record(proofs.prove_record(genesis_state(world.chain.genesis), "tasks", key_),
                                   state_root(genesis_state(world.chain.genesis)), Task, key_) is None  # fmt: skip
    with pytest.raises(NotFoundError, match="no table 'scalars'"):
        proofs.prove_record(state, "scalars", b"x")


def test_proofs_that_prove_something_else() -> None:
    state = World().chain.state
    root, mine = state_root(state), account("pool0")
    good = proofs.prove_record(state, "accounts", mine)
    richer = replace(state, accounts=state.accounts.put(mine, Account(Amount(10**12), 0)))
    keys = list(state.accounts)
    place = keys.index(mine)
    around = [proofs.prove_record(state, "accounts", keys[i]).leaves[0] for i in (place - 1, place + 1)]
    assert isinstance(state.accounts, Table)
    lies: list[RecordProof] = [
        proofs.prove_record(richer, "accounts", mine),
        proofs.prove_record(state, "accounts", account("pool1")),
        replace(proofs.prove_record(state, "accounts", account("pool1")), key=mine),
        replace(good, leaves=()),
        replace(good, leaves=(), size=0),
        replace(good, leaves=tuple(around)),
        replace(good, leaves=(around[0],)),
        replace(good, leaves=(around[1],)),
        replace(good, leaves=(good.leaves[0], good.leaves[0])),
        replace(good, path=good.path[1:]),
        replace(good, table="evidence"),
        replace(good, leaves=(Leaf(good.leaves[0].data + b"x", good.leaves[0].index, good.leaves[0].path),)),
    ]
    for lie in lies:
        with pytest.raises((CryptoError, InputError)):
            proofs.check_record(lie, root, Account, mine)
    with pytest.raises(CryptoError):
        proofs.check_record(good, state_root(richer), Account, mine)
    with pytest.raises(CryptoError, match="asked was for"):
        proofs.check_record(good, root, Task, mine)


def test_a_transaction_is_in_its_block_and_in_no_other() -> None:
    world = World()
    pays = [world.chain.tx(f"pool{i}", Transfer(AccountId(some("x")), Amount(i + 1))) for i in range(5)]
    world.block(*pays)
    block = world.chain.blocks[-1]
    header = block.header.decoded()
    for pay in pays:
        proof = proofs.prove_transaction(block.decoded_body(), pay.tx_id)
        assert proofs.check_transaction(proof, header, pay.tx_id) == pay
        with pytest.raises(CryptoError):
            proofs.check_transaction(replace(proof, index=(proof.index + 1) % 5), header, pay.tx_id)
        with pytest.raises(CryptoError):
            proofs.check_transaction(proof, replace(header, merkle_root=some("other")), pay.tx_id)
        with pytest.raises(PoflError):
            proofs.check_transaction(proof, header, TxId(some("other")))
    with pytest.raises(NotFoundError):
        proofs.prove_transaction(block.decoded_body(), TxId(some("other")))


def test_a_payout_is_no_transaction() -> None:
    """Both are leaves of one tree: the first byte tells them apart."""
    chain = Chain()
    chain.to_work_height(pool0=900)
    block = chain.work_block("pool0")
    header, body = block.header.decoded(), block.decoded_body()
    data = encode(body.payouts[0])
    proof = proofs.TransactionProof(data, 0, len(body.payouts), ())
    with pytest.raises(PoflError):
        proofs.check_transaction(proof, header, TxId(some("x")))

"""Each invariant holds of an honest network's answers, and fails on answers that are doctored in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.manifest.facts import Block, Claim, Facts, Model, Node, Sample, Task, Trade, Verdict
from bench.manifest.invariants import BLOCK_DOMAIN, INVARIANTS, judge, ranked, status
from bench.manifest.liars import liars_caught
from bench.manifest.model import Liar, Lie, Manifest
from core.crypto.hashing import digest


def name(text: str) -> bytes:
    return digest(b"test", text.encode())


NODES = [name(f"node{i}") for i in range(4)]
HONEST, LIAR, MINER = name("pool0"), name("pool1"), name("miner")
GOOD, LIE = name("good model"), name("bad model")
WON, VOID = name("task 1"), name("task 2")
SUPPLY, BURNED, REWARD = 1_000_000, 12_000, 100_000
ACCOUNTS = {"pool0": HONEST, "pool1": LIAR, "requester0": name("requester0")}


def chain(blocks: list[Block]) -> dict[int, Block]:
    """Linked up: hashes, parents, states."""
    linked: dict[int, Block] = {}
    before, state = bytes(32), name("state 0")
    for height, block in enumerate(blocks, start=1):
        header = f"header {height}".encode()
        after = name(f"state {height}")
        made = replace(
            block, height=height, header=header, block_hash=digest(BLOCK_DOMAIN, header), prev_hash=before,
            parent_state_root=state, state_root=after, transactions=(name(f"tx {height}"),),
        )  # fmt: skip
        linked[height] = made
        before, state = made.block_hash, after
    return linked


def block(kind: str, author: bytes = NODES[0], **fields: object) -> Block:
    return replace(Block(0, b"", b"", b"", b"", b"", kind, author), **fields)  # type: ignore[arg-type]


def verdicts(kind: str, pool: bytes, model: bytes, signers: int) -> list[Verdict]:
    return [Verdict(node, pool, model, kind) for node in NODES[:signers]]


def honest() -> Facts:
    """Two tasks: in the first a lying pool claims all and is refuted, the honest one wins; in the second a claim is dead."""
    blocks = chain([
        block("transaction", claims=(Claim(WON, LIAR, 400, LIE), Claim(WON, HONEST, 380, GOOD))),
        block(
            "work", HONEST, task_id=WON, correct=380, total=400, model=GOOD,
            payouts=((HONEST, 80_000), (MINER, 5_000)), kinds=(),
        ),
        block("transaction", kinds=("Verdicts", "Transfer"), claims=(Claim(VOID, HONEST, 381, name("second")),)),
        block("void", task_id=VOID, outcome=((name("second"), "dead"),)),
    ])  # fmt: skip
    served = {
        2: (*verdicts("pool-fault", LIAR, LIE, 3), *verdicts("valid", HONEST, GOOD, 2)),
        4: tuple(verdicts("requester-fault", HONEST, name("second"), 3)),
    }
    tasks = {WON: Task(WON, REWARD, "won", 2, HONEST), VOID: Task(VOID, REWARD, "void", 4, b"")}
    trades = {name("trade"): Trade(name("trade"), LIAR, is_leaked=True)}
    nodes = tuple(Node(f"node{i}", 4, SUPPLY - BURNED, BURNED, blocks, {}, served, tasks, trades, read_at=4) for i in range(4))
    return Facts(
        supply=SUPPLY, power=dict.fromkeys(NODES, 1), burn_ppm=100_000, auditors_ppm=50_000, nodes=nodes,
        models={WON: Model(380, 400, GOOD)}, samples=(Sample("node1", 2, SUPPLY - 10_000, 10_000),),
        names={account: text for text, account in ACCOUNTS.items()}, lying_pools=frozenset({LIAR}),
    )  # fmt: skip


def with_node(facts: Facts, number: int, **fields: object) -> Facts:
    nodes = list(facts.nodes)
    nodes[number] = replace(nodes[number], **fields)  # type: ignore[arg-type]
    return replace(facts, nodes=tuple(nodes))


def with_block(facts: Facts, at: int, /, *numbers: int, **fields: object) -> Facts:
    """Another block at a height, on some nodes or on all; its header is left as it is."""
    for number in numbers or range(4):
        blocks = dict(facts.nodes[number].blocks)
        blocks[at] = replace(blocks[at], **fields)  # type: ignore[arg-type]
        facts = with_node(facts, number, blocks=blocks)
    return facts


def with_verdicts(facts: Facts, height: int, found: list[Verdict]) -> Facts:
    for number in range(4):
        facts = with_node(facts, number, verdicts={**facts.nodes[number].verdicts, height: tuple(found)})
    return facts


def with_task(facts: Facts, task_id: bytes, /, *numbers: int, **fields: object) -> Facts:
    for number in numbers or range(4):
        tasks = dict(facts.nodes[number].tasks)
        tasks[task_id] = replace(tasks[task_id], **fields)  # type: ignore[arg-type]
        facts = with_node(facts, number, tasks=tasks)
    return facts


def test_an_honest_network_keeps_all_of_them() -> None:
    assert judge(honest()) == {invariant: [] for invariant in INVARIANTS}


Doctor = Callable[[Facts], Facts]
DOCTORED: list[tuple[str, Doctor, str]] = [
    ("same chain", lambda f: with_block(f, 3, 2, block_hash=name("fork")), "height 3: node0 has block"),
    ("same chain", lambda f: with_block(f, 4, 1, state_root=name("other")), "height 4: node0 has state"),
    ("same chain", lambda f: with_block(f, 2, 3, payouts=((MINER, 85_000),)), "2: node0 and node3 tell different payouts"),
    ("same chain", lambda f: with_block(f, 2, 1, kind="void", author=LIAR), "node0 and node1 tell different kind, author"),
    ("same chain", lambda f: with_block(f, 2, 1, correct=400, model=LIE), "node0 and node1 tell different correct, model"),
    ("same chain", lambda f: with_block(f, 1, 2, claims=()), "height 1: node1 and node2 tell different claims"),
    ("same chain", lambda f: with_block(f, 4, 3, outcome=()), "height 4: node0 and node3 tell different outcome"),
    ("same chain", lambda f: with_block(f, 3, 3, transactions=(), kinds=()), "tell different transactions, kinds"),
    ("same chain", lambda f: with_task(f, WON, 2, winner=LIAR), "node0 says won at height 2 for 100000 by"),
    ("same chain", lambda f: with_task(f, VOID, 1, reward=5), "node1 void at height 4 for 5 by nobody"),
    ("same chain", lambda f: with_task(f, VOID, 3, phase="work", ended_height=0), "node3 it has not ended"),
    ("same chain", lambda f: with_node(f, 2, tasks={}), "node2 it has not ended"),
    ("same chain", lambda f: with_block(f, 3, header=b"another"), "block 3 has another hash than its header"),
    ("same chain", lambda f: with_block(f, 3, prev_hash=name("other")), "block 3 is not built on block 2"),
    ("same chain", lambda f: with_block(f, 3, parent_state_root=name("x")), "block 3 names another state after block 2"),
    ("same chain", lambda f: with_block(f, 3, height=2), "gives block 2 as block 3"),
    ("every block served", lambda f: with_node(f, 3, missing={2: "NOT_FOUND: gone"}), "node3 does not serve block 2: NOT"),
    ("every block served", lambda f: with_node(f, 1, height=3), "node1 is at height 3, others at 4"),
    ("every block served", lambda f: replace(f, final=5), "node3 is at height 4, others at 5"),
    ("every block served", lambda f: with_node(f, 1, blocks={1: f.nodes[1].blocks[1]}), "node1 does not serve block 2"),
    ("best true claim", lambda f: with_verdicts(f, 2, verdicts("valid", HONEST, GOOD, 2)),
     "the claim of pool1 with 400 ranks higher and is undecided"),
    ("best true claim", lambda f: with_verdicts(f, 2, [*verdicts("valid", LIAR, LIE, 2), *verdicts("valid", HONEST, GOOD, 2)]),
     "ranks higher and is adopted"),
    ("best true claim", lambda f: with_verdicts(f, 2, verdicts("pool-fault", LIAR, LIE, 3)), "pool0 is undecided, by the"),
    ("best true claim", lambda f: with_block(f, 2, model=name("never claimed")), "won with a model that it did not claim"),
    ("best true claim", lambda f: with_block(f, 2, author=MINER), "won with a model that it did not claim"),
    ("best true claim", lambda f: with_verdicts(f, 4, verdicts("valid", HONEST, name("second"), 3)),
     "the block calls the claim of pool0 dead, by the verdicts it is adopted"),
    ("best true claim", lambda f: with_block(f, 4, outcome=()), "says nothing of 1 claims"),
    ("best true claim", lambda f: with_block(f, 4, outcome=((LIE, "dead"),)), "does not list the claims in their order"),
    ("no false claim", lambda f: replace(f, models={WON: Model(379, 400, GOOD)}), "says 380/400, the model scores 379/400"),
    ("no false claim", lambda f: replace(f, models={}), "the requester has no model"),
    ("no false claim", lambda f: replace(f, models={WON: Model(380, 400, LIE)}), "was given another model"),
    ("no false claim", lambda f: with_block(f, 2, correct=381), "the header says 381, the pool had claimed another number"),
    ("no false claim", lambda f: replace(f, lying_pools=frozenset()), "a validator calls the claim of pool1 false"),
    ("supply constant", lambda f: with_node(f, 2, supply=SUPPLY), "node2 at height 4: the supply is 1000000"),
    ("supply constant", lambda f: with_node(f, 2, supply=SUPPLY - 1, burned=1), "height 4: node0 says 12000 are burned"),
    ("supply constant", lambda f: replace(f, samples=(Sample("node0", 2, SUPPLY - 13_000, 13_000),)),
     "13000 were burned at height 2, only 12000 at height 4"),
    ("supply constant", lambda f: replace(f, samples=(Sample("node0", 1, SUPPLY + 5, 0),)), "the supply is 1000005"),
    ("rewards paid once", lambda f: with_block(f, 2, payouts=((HONEST, 85_001),)), "pays 85001 of a reward of 100000, 85000"),
    ("rewards paid once", lambda f: with_block(f, 2, payouts=()), "pays 0 of a reward of 100000"),
    ("rewards paid once", lambda f: with_block(f, 2, payouts=((HONEST, 80_000), (HONEST, 5_000))), "pays an account twice"),
    ("rewards paid once", lambda f: with_block(f, 2, payouts=((HONEST, 90_000), (MINER, -5_000))), "pays 85000 of"),
    ("rewards paid once", lambda f: with_block(f, 3, payouts=((HONEST, 1),)), "a transaction block pays 1"),
    ("rewards paid once", lambda f: with_block(f, 4, kind="work", task_id=WON, payouts=((HONEST, 1),)), "paid at heights 2, 4"),
    ("rewards paid once", lambda f: with_block(f, 2, kind="transaction", payouts=()), "is won, and no work block pays for it"),
    ("rewards paid once", lambda f: with_block(f, 3, kinds=("Verdicts", "Verdicts")), "auditors are paid 2 times"),
    ("rewards paid once", lambda f: with_block(f, 1, kinds=("Verdicts",)), "auditors are paid 1 times"),
    ("rewards paid once", lambda f: with_block(f, 3, transactions=(name("tx 1"),)), "is on the chain twice"),
    ("rewards paid once", lambda f: with_task(f, WON, phase="void"), "the node says that this task is void"),
    ("rewards paid once", lambda f: with_task(f, WON, winner=LIAR), "at height 2 by pool1"),
]  # fmt: skip


@pytest.mark.parametrize(("invariant", "doctor", "said"), DOCTORED)
def test_a_doctored_answer_is_found(invariant: str, doctor: Doctor, said: str) -> None:
    found = judge(doctor(honest()))[invariant]
    assert any(said in problem for problem in found), found


def test_ranking_and_ends_are_those_of_the_chain() -> None:
    tied = [Claim(WON, name(f"p{i}"), 5, name(f"m{i}")) for i in range(20)]
    first, second = ranked(tied, name("one")), ranked(tied, name("two"))
    assert set(first) == set(second) == set(tied)
    assert first != second
    best = Claim(WON, name("p30"), 6, name("m30"))
    assert ranked([*tied, best], name("one"))[0] is best
    # Only a pool's first claim counts.
    assert best not in ranked([Claim(WON, best.pool, 1, name("early")), best], name("one"))
    power = dict.fromkeys(NODES, 1)
    assert status(GOOD, verdicts("valid", HONEST, GOOD, 1), power) == "undecided"
    assert status(GOOD, verdicts("valid", HONEST, GOOD, 2), power) == "adopted"
    assert status(GOOD, verdicts("unavailable", HONEST, GOOD, 3), power) == "skipped"
    assert status(GOOD, [*verdicts("valid", HONEST, GOOD, 2), *verdicts("pool-fault", HONEST, GOOD, 4)], power) == "adopted"
    stranger = Verdict(name("stranger"), HONEST, GOOD, "valid")
    assert status(GOOD, [*verdicts("valid", HONEST, GOOD, 1), stranger, stranger], power) == "undecided"


@pytest.mark.parametrize(
    ("liar", "doctor", "said"),
    [
        (Liar("pool1", Lie.COUNT), lambda f: with_verdicts(f, 2, []), "pool1 lied (count), and no claim ended refuted"),
        (Liar("requester0", Lie.VALUES, 1), lambda f: with_verdicts(f, 4, []), "ended dead: refuted, adopted, undecided"),
        (Liar("pool1", Lie.LEAK), lambda f: with_node(f, 0, trades={}), "none of its 0 trades is called leaked"),
    ],
)  # fmt: skip
def test_a_liar_who_is_not_caught_is_a_problem(liar: Liar, doctor: Doctor, said: str) -> None:
    manifest = Manifest("m", liars=(liar,))
    assert liars_caught(manifest, ACCOUNTS, honest()) == []
    assert said in liars_caught(manifest, ACCOUNTS, doctor(honest()))[0]


def test_what_nodes_tell_at_different_tips_is_no_problem() -> None:
    """A node that is asked a block later, or before its task ended, tells of the same chain."""
    behind = with_node(honest(), 1, height=3, blocks={h: b for h, b in honest().nodes[1].blocks.items() if h < 4})
    behind = with_node(with_task(behind, VOID, 1, phase="work", ended_height=0), 1, trades={})
    later = name("task 3")
    ahead = with_node(behind, 2, tasks={**behind.nodes[2].tasks, later: Task(later, REWARD, "entry", 0, b"")})
    assert judge(ahead)["same chain"] == []


def test_what_came_after_a_height_is_left_out() -> None:
    cut = honest().up_to(2)
    assert judge(cut) == {invariant: [] for invariant in INVARIANTS}
    assert {tuple(node.blocks) for node in cut.nodes} == {(1, 2)}
    assert all(set(node.tasks) == {WON} for node in cut.nodes)

"""What must hold of every network, whatever was done to it: functions from what it tells (bench.manifest.facts) to problems.

The chain's rules are not run here: what they promise is worked out anew from claims, verdicts and headers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import combinations, pairwise
from typing import Final

from bench.manifest.facts import Block, Claim, Facts, Node, Task, Verdict
from core.crypto.hashing import digest

__all__ = [
    "INVARIANTS", "best_true_claim", "decided", "every_block_served", "judge", "no_false_claim", "ranked", "rewards_paid_once",
    "same_chain", "status", "supply_constant",
]  # fmt: skip

BLOCK_DOMAIN: Final = b"pofl/block/1"
TIE_DOMAIN: Final = b"pofl/claim-tie/1"
MILLION: Final = 1_000_000


def judge(facts: Facts) -> dict[str, list[str]]:
    """By invariant: its problems, none if it holds."""
    return {name: invariant(facts) for name, invariant in INVARIANTS.items()}


def same_chain(facts: Facts) -> list[str]:
    """One block, all that is told of it, and one state at every height on all nodes; each block is built on the one before
    and has its own hash. Tasks that ended up to a node's height are told as by the others: what becomes of one later, or of
    a trade, depends on how far a node is when it is asked, so that is not compared."""
    found = []
    for a, b in combinations(facts.nodes, 2):
        found += _same_ends(a, b)
        for height in sorted(set(a.blocks) & set(b.blocks)):
            first, second = a.blocks[height], b.blocks[height]
            for what, one, other in (
                ("block", first.block_hash, second.block_hash), ("state", first.state_root, second.state_root),
            ):  # fmt: skip
                if one != other:
                    found.append(f"height {height}: {a.name} has {what} {_hex(one)}, {b.name} {_hex(other)}")
            # The messages' fields stand beside the bytes that are hashed: a node could tell the one and mean the other.
            told = [f.name for f in fields(Block) if getattr(first, f.name) != getattr(second, f.name)]
            if told:
                found.append(f"height {height}: {a.name} and {b.name} tell different {', '.join(told)}")
    for node in facts.nodes:
        for height, block in sorted(node.blocks.items()):
            if block.height != height:
                found.append(f"{node.name} gives block {block.height} as block {height}")
            if digest(BLOCK_DOMAIN, block.header) != block.block_hash:
                found.append(f"{node.name}: block {height} has another hash than its header")
            before = node.blocks.get(height - 1)
            if before is not None and block.prev_hash != before.block_hash:
                found.append(f"{node.name}: block {height} is not built on block {height - 1}")
            if before is not None and block.parent_state_root != before.state_root:
                found.append(f"{node.name}: block {height} names another state after block {height - 1} than the node has")
    return found


def _same_ends(a: Node, b: Node) -> list[str]:
    found, common = [], min(a.height, b.height)
    for task_id in sorted({*a.tasks, *b.tasks}):
        one, other = (_ended(node.tasks.get(task_id), common) for node in (a, b))
        if one != other:
            found.append(f"task {_hex(task_id)}: {a.name} says {_end(one)}, {b.name} {_end(other)}")
    return found


def _ended(task: Task | None, height: int) -> Task | None:
    return task if task is not None and 0 < task.ended_height <= height else None


def _end(task: Task | None) -> str:
    if task is None:
        return "it has not ended"
    return f"{task.phase} at height {task.ended_height} for {task.reward} by {_hex(task.winner) or 'nobody'}"


def every_block_served(facts: Facts) -> list[str]:
    """Every node serves every block up to the last that any has, and to ``facts.final``: nobody is left behind."""
    found, last = [], max(facts.final, facts.longest().height)
    for node in facts.nodes:
        found += [f"{node.name} does not serve block {height}: {why}" for height, why in sorted(node.missing.items())]
        if node.height < last:
            found.append(f"{node.name} is at height {node.height}, others at {last}")
        gone = [h for h in range(1, node.height + 1) if h not in node.blocks and h not in node.missing]
        found += [f"{node.name} does not serve block {height}" for height in gone]
    return found


def best_true_claim(facts: Facts) -> list[str]:
    """A work block is the best claim that the verdicts do not refute or skip; a void block says how each claim ended."""
    found = []
    for block, claims, verdicts in decided(facts):
        ends = {claim.model: status(claim.model, verdicts, facts.power) for claim in claims}
        where = f"height {block.height}"
        if block.kind == "void":
            found += _void(facts, block, claims, ends, where)
            continue
        place = next((i for i, c in enumerate(claims) if (c.pool, c.model) == (block.author, block.model)), None)
        if place is None:
            found.append(f"{where}: {facts.name(block.author)} won with a model that it did not claim")
            continue
        for claim in claims[:place]:
            if ends[claim.model] not in ("refuted", "skipped"):
                found.append(
                    f"{where}: {facts.name(block.author)} won with {block.correct}, the claim of {facts.name(claim.pool)} "
                    f"with {claim.correct} ranks higher and is {ends[claim.model]}"
                )
        if ends[block.model] != "adopted":
            found.append(f"{where}: the winning claim of {facts.name(block.author)} is {ends[block.model]}, by the verdicts")
    return found


def _void(facts: Facts, block: Block, claims: Sequence[Claim], ends: Mapping[bytes, str], where: str) -> list[str]:
    found = []
    if [model for model, _ in block.outcome] != [claim.model for claim in claims[: len(block.outcome)]]:
        found.append(f"{where}: the void block does not list the claims in their order")
    if len(block.outcome) < len(claims) and (not block.outcome or block.outcome[-1][1] != "dead"):
        found.append(f"{where}: the void block says nothing of {len(claims) - len(block.outcome)} claims")
    names = {claim.model: facts.name(claim.pool) for claim in claims}
    found += [
        f"{where}: the block calls the claim of {names.get(model, '?')} {end}, by the verdicts it is {ends.get(model, 'none')}"
        for model, end in block.outcome
        if ends.get(model) != end
    ]
    return found


def no_false_claim(facts: Facts) -> list[str]:
    """What a header says is what the pool claimed, and what its model scores on the requester's test set; and no validator
    calls the claim of a pool false that told the truth."""
    found = []
    for block, claims, verdicts in decided(facts):
        accused = {v.pool for v in verdicts if v.kind == "pool-fault"} - facts.lying_pools
        found += [f"height {block.height}: a validator calls the claim of {facts.name(pool)} false" for pool in accused]
        if block.kind != "work":
            continue
        where = f"height {block.height}, {facts.name(block.author)}"
        if any(c.correct != block.correct for c in claims if (c.pool, c.model) == (block.author, block.model)):
            found.append(f"{where}: the header says {block.correct}, the pool had claimed another number")
        model = facts.models.get(block.task_id)
        if model is None:
            found.append(f"{where}: the requester has no model to check the header with")
        elif (model.correct, model.total) != (block.correct, block.total):
            scores = f"{model.correct}/{model.total}"
            found.append(f"{where}: the header says {block.correct}/{block.total}, the model scores {scores}")
        elif model.model != block.model:
            found.append(f"{where}: the requester was given another model than the block commits to")
    return found


def supply_constant(facts: Facts) -> list[str]:
    """At every height that was looked at: supply = genesis - burned, the same on all nodes; what is burned stays so."""
    found = []
    seen = [(s.node, s.height, s.supply, s.burned) for s in facts.samples]
    seen += [(n.name, n.read_at, n.supply, n.burned) for n in facts.nodes]
    at: dict[int, tuple[int, str]] = {}
    for node, height, supply, burned in sorted(seen, key=lambda each: each[1]):
        if supply != facts.supply - burned:
            found.append(f"{node} at height {height}: the supply is {supply}, it should be {facts.supply} - {burned} burned")
        known = at.setdefault(height, (burned, node))
        if known[0] != burned:
            found.append(f"height {height}: {known[1]} says {known[0]} are burned, {node} says {burned}")
    heights = sorted(at)
    for lower, higher in pairwise(heights):
        if at[higher][0] < at[lower][0]:
            found.append(f"{at[lower][0]} were burned at height {lower}, only {at[higher][0]} at height {higher}")
    return found


def rewards_paid_once(facts: Facts) -> list[str]:
    """Every won task has one work block, which pays out its reward less what is burned and the auditors' part; nothing else
    pays, and no transaction is in two places."""
    found = []
    node = facts.longest()
    blocks = [node.blocks[height] for height in sorted(node.blocks)]
    paying: dict[bytes, list[Block]] = {}
    for before, block in zip([None, *blocks], blocks, strict=False):
        if block.kind == "work":
            paying.setdefault(block.task_id, []).append(block)
        elif block.payouts:
            found.append(f"height {block.height}: a {block.kind} block pays {sum(a for _, a in block.payouts)}")
        if (times := block.kinds.count("Verdicts")) > (before is not None and before.kind != "transaction"):
            found.append(f"height {block.height}: auditors are paid {times} times")
    for task_id, work in paying.items():
        found += _paid(facts, node.tasks.get(task_id), work)
    for task in node.tasks.values():
        if task.phase == "won" and task.task_id not in paying:
            found.append(f"task {_hex(task.task_id)} is won, and no work block pays for it")
    twice = [tx for tx, count in Counter(tx for block in blocks for tx in block.transactions).items() if count > 1]
    return found + [f"transaction {_hex(tx)} is on the chain twice" for tx in twice]


def _paid(facts: Facts, task: Task | None, work: Sequence[Block]) -> list[str]:
    block, found = work[0], []
    if len(work) > 1:
        found.append(f"task {_hex(block.task_id)} is paid at heights {', '.join(str(b.height) for b in work)}")
    if task is None:
        return [*found, f"height {block.height}: the work block is of a task that the node does not know"]
    if (task.phase, task.ended_height, task.winner) != ("won", block.height, block.author):
        found.append(f"height {block.height}: the node says that this task is {task.phase} at height {task.ended_height} "
                     f"by {facts.name(task.winner)}")  # fmt: skip
    due = task.reward - task.reward * facts.burn_ppm // MILLION - task.reward * facts.auditors_ppm // MILLION
    for each in work:
        amounts, accounts = [a for _, a in each.payouts], [p for p, _ in each.payouts]
        if sum(amounts) != due or min(amounts, default=0) <= 0:
            found.append(f"height {each.height} pays {sum(amounts)} of a reward of {task.reward}, {due} are due")
        if len(set(accounts)) != len(accounts):
            found.append(f"height {each.height} pays an account twice")
    return found


INVARIANTS: Final[Mapping[str, Callable[[Facts], list[str]]]] = {
    "same chain": same_chain, "every block served": every_block_served, "best true claim": best_true_claim,
    "no false claim": no_false_claim, "supply constant": supply_constant, "rewards paid once": rewards_paid_once,
}  # fmt: skip


# What the chain's rules would say, worked out from what is served


def ranked(claims: Sequence[Claim], closing_hash: bytes) -> tuple[Claim, ...]:
    """Best first: N descending, then SHA-256 of the block that closed the claims and c_W. A pool's first claim counts."""
    first: dict[bytes, Claim] = {}
    for claim in claims:
        first.setdefault(claim.pool, claim)
    return tuple(sorted(first.values(), key=lambda c: (-c.correct, digest(TIE_DOMAIN, closing_hash, c.model))))


def status(model: bytes, verdicts: Sequence[Verdict], power: Mapping[bytes, int]) -> str:
    """adopted, refuted, dead, skipped, or undecided (design: consensus, "Work height")."""

    def signed(*kinds: str) -> int:
        return sum(power[v] for v in {v.validator for v in verdicts if v.model == model and v.kind in kinds} if v in power)

    total = sum(power.values())
    for end, kind in (("adopted", "valid"), ("refuted", "pool-fault"), ("dead", "requester-fault")):
        if 3 * signed(kind) > total:
            return end
    is_quorum = 3 * signed("valid", "pool-fault", "requester-fault", "unavailable") >= 2 * total
    return "skipped" if is_quorum else "undecided"


def decided(facts: Facts) -> Iterator[tuple[Block, tuple[Claim, ...], tuple[Verdict, ...]]]:
    """Work and void blocks of claims, each with its task's claims, ranked, and the verdicts that any node serves."""
    node = facts.longest()
    claims: dict[bytes, list[Claim]] = {}
    for height in sorted(node.blocks):
        block = node.blocks[height]
        if block.kind != "transaction":
            verdicts = {v: None for each in facts.nodes for v in each.verdicts.get(height, ())}
            yield block, ranked(claims.get(block.task_id, []), block.prev_hash), tuple(verdicts)
        for claim in block.claims:
            claims.setdefault(claim.task_id, []).append(claim)


def _hex(value: bytes) -> str:
    return value.hex()[:8]

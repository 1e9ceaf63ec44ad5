"""Whether the liars of a manifest were caught: a lie that nobody notices would prove nothing about the others."""

from __future__ import annotations

from collections.abc import Mapping

from bench.manifest.facts import Facts
from bench.manifest.invariants import decided, status
from bench.manifest.model import Liar, Lie, Manifest

__all__ = ["liars_caught"]


def liars_caught(manifest: Manifest, accounts: Mapping[str, bytes], facts: Facts) -> list[str]:
    """What is missing: a refuted claim of a lying pool, a task that a lying requester lost, a proven leak."""
    return [problem for liar in manifest.liars if (problem := _problem(liar, accounts[liar.who], facts))]


def _problem(liar: Liar, account: bytes, facts: Facts) -> str:
    if liar.lie is Lie.LEAK:
        trades = [t for t in facts.longest().trades.values() if t.pool == account]
        if not any(trade.is_leaked for trade in trades):
            return f"{liar.who} leaked, and none of its {len(trades)} trades is called leaked"
        return ""
    ends: list[str] = []
    for _, claims, verdicts in decided(facts):
        mine = [c for c in claims if c.pool == account or liar.lie is not Lie.COUNT]
        ends += [status(claim.model, verdicts, facts.power) for claim in mine]
    wanted = "refuted" if liar.lie is Lie.COUNT else "dead"
    caught = ends.count(wanted)
    if not caught:
        return f"{liar.who} lied ({liar.lie}), and no claim ended {wanted}: {', '.join(ends) or 'there was none'}"
    return ""

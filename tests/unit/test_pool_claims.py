"""pool.manager.claims: a losing model leaves the pool only when every better claim is refuted or skipped."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from core.chain.block import Block, SignedHeader
from core.chain.vote import VerdictKind
from core.codec import encode
from core.crypto.signing import KeyPair
from core.errors import InputError, NotFoundError, SequenceError
from core.ids import AccountId, Digest, Height, ModelCommitment, Signature, TaskId
from core.verification.receipt import AnswerKind, sign_answer
from pool.manager import claims
from pool.manager.claims import Shelf, Shown, WorkWatch, malformed
from services.rpc.views import EntryView, TaskView
from tests.pool_kit import CHAIN, HEIGHT, TASK, VALIDATORS, entry, task, verdict
from tests.seeded import SeededRng

REQUESTER = KeyPair.generate(SeededRng("requester of the pool's claims"))

BEST, SECOND, THIRD = entry(1, 390), entry(2, 380), entry(3, 370)
BLOCK = Block(SignedHeader(b"h", Signature(bytes(64))), b"")


def watch(own: EntryView) -> WorkWatch:
    assert own.vm is not None
    return WorkWatch(CHAIN, HEIGHT, task(entries=[BEST, SECOND, THIRD, entry(4)]), VALIDATORS, own.vm.model_commitment)


def served(own: EntryView, seen: WorkWatch) -> Shelf:
    shelf = Shelf()
    answer = malformed(CHAIN, TASK, own.pool, c_w(own))
    shelf.put(Shown(seen, BLOCK, b"body", b"opening", answer, AccountId(REQUESTER.public_key)))
    return shelf


def c_w(own: EntryView) -> ModelCommitment:
    assert own.vm is not None
    return own.vm.model_commitment


def test_the_best_claim_is_shown_at_once() -> None:
    seen = watch(BEST)
    assert seen.is_ours_to_show
    assert served(BEST, seen).body(c_w(BEST)) == b"body"


def test_a_lower_claim_waits_for_the_end_of_every_higher_one() -> None:
    seen = watch(THIRD)
    shelf = served(THIRD, seen)
    assert shelf.block(HEIGHT, c_w(THIRD)) == BLOCK
    with pytest.raises(SequenceError, match="claim 3 of its height"):
        shelf.body(c_w(THIRD))
    # The best is refuted by more than a third; the second still stands.
    assert seen.hear([verdict(0, BEST, VerdictKind.POOL_FAULT), verdict(1, BEST, VerdictKind.POOL_FAULT)])
    with pytest.raises(SequenceError, match="claim 2 of 3 is being audited"):
        shelf.body(c_w(THIRD))
    # The second is skipped: two thirds spoke, without agreeing.
    kinds = [VerdictKind.UNAVAILABLE, VerdictKind.UNAVAILABLE, VerdictKind.POOL_FAULT]
    seen.hear(verdict(i, SECOND, kind) for i, kind in enumerate(kinds))
    assert seen.is_ours_to_show
    assert shelf.body(c_w(THIRD)) == b"body"


def test_an_adopted_or_dead_higher_claim_keeps_the_body_here() -> None:
    for kind in (VerdictKind.VALID, VerdictKind.REQUESTER_FAULT):
        seen = watch(SECOND)
        seen.hear([verdict(0, BEST, kind), verdict(1, BEST, kind)])
        assert not seen.is_ours_to_show
        with pytest.raises(SequenceError):
            served(SECOND, seen).body(c_w(SECOND))


def test_one_liar_opens_nothing() -> None:
    """Verdicts that are not signed by validators, are of another place, or repeat, do not count."""
    seen = watch(SECOND)
    good = verdict(0, BEST, VerdictKind.POOL_FAULT)
    forged = good[:-64] + bytes(64)
    other_height = verdict(1, BEST, VerdictKind.POOL_FAULT, height=Height(10))
    other_chain = verdict(1, BEST, VerdictKind.POOL_FAULT, chain=Digest(b"x" * 32))
    no_claim = verdict(1, entry(9, 300), VerdictKind.POOL_FAULT)
    assert seen.hear([good])
    assert not seen.hear([good, good, forged, other_height, other_chain, no_claim, b"", b"\xff" * 100])
    assert not seen.is_ours_to_show


def test_one_talkative_validator_does_not_drown_the_others() -> None:
    """What a signer says of a claim counts once for each kind; more of it takes no room from what others say."""
    seen = watch(SECOND)
    seen.hear(verdict(3, BEST, VerdictKind.POOL_FAULT, reason=f"again {i}") for i in range(100))
    assert seen.hear([verdict(0, BEST, VerdictKind.POOL_FAULT)])
    assert seen.is_ours_to_show
    assert not seen.hear(verdict(3, BEST, VerdictKind.POOL_FAULT, reason=f"more {i}") for i in range(100))


def test_the_opening_is_shown_only_against_the_requesters_own_word() -> None:
    seen = watch(BEST)
    shelf = served(BEST, seen)
    answer = malformed(CHAIN, TASK, BEST.pool, c_w(BEST))
    good = sign_answer(REQUESTER, answer)
    assert shelf.opening(c_w(BEST), encode(good)) == b"opening"
    scored = replace(answer, kind=AnswerKind.SCORED, z_mark=Digest(b"z" * 32))
    bad = [
        sign_answer(KeyPair.generate(SeededRng("nobody")), answer),
        sign_answer(REQUESTER, scored),
        sign_answer(REQUESTER, replace(answer, task_id=TaskId(b"o" * 32))),
        sign_answer(REQUESTER, replace(answer, model_commitment=c_w(SECOND))),
    ]
    for data in (*map(encode, bad), b"", encode(good)[:-1], encode(good) + b"x"):
        with pytest.raises(InputError):
            shelf.opening(c_w(BEST), data)
    # Nor before this claim's turn, whatever is shown.
    lower = served(SECOND, watch(SECOND))
    with pytest.raises(SequenceError):
        lower.opening(c_w(SECOND), encode(sign_answer(REQUESTER, malformed(CHAIN, TASK, SECOND.pool, c_w(SECOND)))))


class Teller:
    """A node that tells the same ranking whenever it is asked, or cannot be reached."""

    def __init__(self, entries: list[EntryView] | None) -> None:
        self.entries = entries


async def test_a_ranking_is_believed_when_more_than_a_third_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tell(name: str, channel: object, task_id: TaskId) -> TaskView | None:
        assert isinstance(channel, Teller)
        return None if channel.entries is None else task(entries=channel.entries)

    monkeypatch.setattr(claims, "_closed_task", tell)
    honest, liar, silent = Teller([BEST, SECOND]), Teller([SECOND]), Teller(None)

    async def ranking(*tellers: Teller, seconds: float = 60) -> list[EntryView]:
        nodes: Any = [(f"node{i}", teller) for i, teller in enumerate(tellers)]
        async with asyncio.timeout(seconds):
            return list((await claims.agreed_ranking(nodes, 4, TASK)).entries)

    assert await ranking(liar, honest, honest, silent) == [BEST, SECOND]
    assert await ranking(honest) == [BEST, SECOND]
    # One liar never is enough, nor one honest node of four.
    for tellers in ((liar, silent, silent, silent), (liar, honest, silent, silent)):
        with pytest.raises(TimeoutError):
            await ranking(*tellers, seconds=0.5)


def test_what_is_not_here_is_not_found() -> None:
    seen = watch(BEST)
    shelf = served(BEST, seen)
    with pytest.raises(NotFoundError):
        shelf.body(c_w(SECOND))
    with pytest.raises(NotFoundError):
        shelf.block(Height(10), c_w(BEST))
    with pytest.raises(NotFoundError, match="no claim of task"):
        WorkWatch(CHAIN, HEIGHT, task(entries=[BEST]), VALIDATORS, ModelCommitment(b"z" * 32))

"""Checks of signed things against a validator set: headers, certificates, votes, verdicts (design: consensus).

Every function raises and changes nothing. Sizes are checked before parsing, hashes before signatures.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from core.chain import merkle
from core.chain.block import (
    DOMAIN_HEADER_SIGNATURE,
    MAX_BODY,
    MAX_HEADER,
    NIL,
    Block,
    Body,
    Certificate,
    CommitSignature,
    Header,
    Payout,
    SignedHeader,
)
from core.chain.vote import (
    DOMAIN_PROPOSAL,
    DOMAIN_VERDICT,
    DOMAIN_VOTE,
    Proposal,
    SignedProposal,
    SignedVerdict,
    SignedVote,
    Step,
    Verdict,
    Vote,
)
from core.codec import decode, encode
from core.crypto import signing
from core.errors import BlockError, CryptoError, InputError, VoteError, WrongChainError
from core.ids import Digest, Height, Milliseconds, NodeId, short

__all__ = [
    "PowerOf", "block_time", "body_root", "check_ahead", "check_certificate", "check_header_signature",
    "check_later_certificate", "check_proposal", "check_verdict", "check_vote", "is_quorum", "is_third", "is_within_reach",
    "median_time", "powers", "proposed_block",
]  # fmt: skip

MAX_BLOCK: Final = MAX_HEADER + MAX_BODY + 128
PAYOUT_LEAF: Final = b"\x01"
TRANSACTION_LEAF: Final = b"\x02"
VOTES: Final = signing.Remembered(2048)
"""A precommit comes as a vote, in the certificate of its block and in the next block's. Who catches up checks those of the
blocks ahead at the same time (``AHEAD``)."""
AHEAD: Final = 1024
"""Signatures that may be checked before their blocks' turn: what is remembered meanwhile must last until then."""


class PowerOf(Protocol):
    """What the checks need of a validator."""

    @property
    def node_id(self) -> bytes: ...
    @property
    def power(self) -> int: ...


def powers(validators: Sequence[PowerOf]) -> dict[bytes, int]:
    return {v.node_id: v.power for v in validators}


def is_quorum(power: int, total: int) -> bool:
    """At least 2/3 of the power: two such sets share an honest validator while fewer than 1/3 are not."""
    return 3 * power >= 2 * total


def is_third(power: int, total: int) -> bool:
    """More than 1/3 of the power: at least one of them is honest."""
    return 3 * power > total


def body_root(payouts: Sequence[Payout], transactions: Sequence[bytes]) -> Digest:
    """``merkle_root`` of the header: RFC 6962 over payouts, then transactions, each leaf with its kind in front."""
    leaves = [PAYOUT_LEAF + encode(p) for p in payouts]
    return merkle.root(leaves + [TRANSACTION_LEAF + t for t in transactions])


def check_header_signature(signed: SignedHeader) -> Header:
    """The header, if its author signed exactly these bytes.

    Raises:
        BlockError: it does not decode, or the signature is not the author's.
    """
    try:
        header = signed.decoded()
        signing.verify(header.author_id, DOMAIN_HEADER_SIGNATURE, signed.header, signed.signature)
    except (InputError, CryptoError) as error:
        raise BlockError(f"header {short(signed.block_hash)}: {error.message}", block_hash=signed.block_hash) from None
    return header


def check_certificate(certificate: Certificate, chain_id: Digest, validators: Sequence[PowerOf]) -> None:
    """Checks that the certificate makes its block final under ``validators``, those of its height.

    Raises:
        BlockError: a signer is unknown, out of order or repeated, a signature is wrong, or the power is below 2/3.
    """
    checked = (certificate, chain_id, tuple(validators))
    if checked != _CERTIFICATE.last:
        _check_certificate(certificate, chain_id, validators)
        _CERTIFICATE.last = checked


class _Last:
    """The last good certificate, with the chain and the validators that it is good for: that of a block is its child's too."""

    last: tuple[Certificate, Digest, tuple[PowerOf, ...]] | None = None


_CERTIFICATE: Final = _Last()


def _check_certificate(certificate: Certificate, chain_id: Digest, validators: Sequence[PowerOf]) -> None:
    where = f"certificate of height {certificate.height}"
    if certificate.block_hash == NIL:
        raise BlockError(f"{where}: it is for no block")
    known = powers(validators)
    signers = [s.validator for s in certificate.signatures]
    if any(first >= second for first, second in itertools.pairwise(signers)):
        raise BlockError(f"{where}: its signers are not in ascending order, each once")
    power = 0
    for signer in signers:
        if signer not in known:
            raise BlockError(f"{where}: {short(signer)} is no validator of that height", validator=signer)
        power += known[signer]
    if not is_quorum(power, sum(known.values())):
        raise BlockError(f"{where}: power {power} of {sum(known.values())} signed, 2/3 are needed", power=power)
    head = _precommit_head(certificate, chain_id)
    for commit in certificate.signatures:
        try:
            VOTES.verify(commit.validator, DOMAIN_VOTE, _precommit(head, commit), commit.signature)
        except CryptoError as error:
            raise BlockError(f"{where}: {error.message}", validator=commit.validator) from None


def check_ahead(certificate: Certificate, chain_id: Digest, validators: Sequence[PowerOf]) -> None:
    """Checks what ``check_certificate`` will check again, which then costs little; says nothing of what it finds.

    ``validators`` are those of now: who votes at the certificate's height is not known yet, and is looked at in its turn. For
    a thread beside the one that executes blocks: the greatest part of the work is done outside the interpreter.
    """
    known = powers(validators)
    head = _precommit_head(certificate, chain_id)
    for commit in certificate.signatures:
        if commit.validator in known:
            try:
                VOTES.verify(commit.validator, DOMAIN_VOTE, _precommit(head, commit), commit.signature)
            except CryptoError:
                return


def is_within_reach(certificate: Certificate, validators: Sequence[PowerOf]) -> bool:
    """Whether 2/3 of ``validators`` are named in a later certificate; nothing of what they signed is checked here.

    Where they are not, the validators have changed in between. The next certificate is always within reach.
    """
    known = powers(validators)
    signers = {s.validator for s in certificate.signatures}
    return is_quorum(sum(known[s] for s in signers if s in known), sum(known.values()))


def check_later_certificate(certificate: Certificate, chain_id: Digest, validators: Sequence[PowerOf]) -> None:
    """As ``check_certificate``, under the ``validators`` of an earlier height: who joined since does not count.

    Raises:
        BlockError: as there; fewer than 2/3 of ``validators`` signed.
    """
    known = powers(validators)
    kept = tuple(s for s in certificate.signatures if s.validator in known)
    check_certificate(replace(certificate, signatures=kept), chain_id, validators)


def _precommit_head(certificate: Certificate, chain_id: Digest) -> bytes:
    """What the votes in a certificate have in common: all but the last two fields, time and validator."""
    place, nobody = (certificate.height, certificate.round), NodeId(bytes(32))
    vote = Vote(chain_id, *place, Step.PRECOMMIT, certificate.block_hash, Milliseconds(0), nobody)
    return encode(vote)[:-40]


def _precommit(head: bytes, commit: CommitSignature) -> bytes:
    return head + commit.time_ms.to_bytes(8, "big") + commit.validator


def median_time(certificate: Certificate, validators: Sequence[PowerOf]) -> Milliseconds:
    """Power-weighted median of the precommits' times, the lower one where two qualify.

    With fewer than 1/3 of the power dishonest it lies between two honest clocks.
    """
    known = powers(validators)
    times = sorted((s.time_ms, known[s.validator]) for s in certificate.signatures)
    half = sum(power for _, power in times)
    seen = 0
    for time_ms, power in times:
        seen += power
        if 2 * seen >= half:
            return time_ms
    raise BlockError(f"certificate of height {certificate.height}: nobody signed")


def block_time(
    parent_height: Height,
    parent_ms: Milliseconds,
    certificate: Certificate | None,
    validators: Sequence[PowerOf],
) -> Milliseconds:
    """``time(h) = max(time(h-1) + 1, median of the precommit times of h-1)``; at height 1: genesis time.

    ``parent_ms`` is the parent's time; for height 1 that of the genesis document, with no certificate.

    Raises:
        BlockError: a certificate is missing, or there is one at height 1.
    """
    if (certificate is None) != (parent_height == 0):
        raise BlockError(f"a block at height {parent_height + 1} carries {'no' if certificate is None else 'a'} certificate")
    if certificate is None:
        return parent_ms
    return Milliseconds(max(parent_ms + 1, median_time(certificate, validators)))


def check_body(header: Header, body: Body) -> None:
    """Raises BlockError unless the header commits to the body's payouts and transactions."""
    root = body_root(body.payouts, body.transactions)
    if root != header.merkle_root:
        raise BlockError(
            f"block at height {header.height}: the body's root is {root.hex()}, the header says {header.merkle_root.hex()}"
        )


def _check_signer(what: str, known: Mapping[bytes, int], validator: bytes) -> None:
    if validator not in known:
        raise VoteError(f"{what} by {short(validator)}, who is no validator of this height", validator=validator)


def _check_place(what: str, chain_id: Digest, height: Height, its_chain: Digest, its_height: Height) -> None:
    if its_chain != chain_id:
        raise WrongChainError(f"{what} for chain {short(its_chain)}, this is {short(chain_id)}")
    if its_height != height:
        raise VoteError(f"{what} for height {its_height}, expected {height}", height=its_height)


def check_vote(signed: SignedVote, chain_id: Digest, height: Height, known: Mapping[bytes, int]) -> Vote:
    """The vote, if a validator of this chain and height signed it.

    Raises:
        VoteError: it does not decode, is for another height, or is not signed by a validator in ``known``.
        WrongChainError: it is for another chain.
    """
    try:
        vote = decode(Vote, signed.vote, 512)
    except InputError as error:
        raise VoteError(f"vote: {error.message}") from None
    _check_place("vote", chain_id, height, vote.chain_id, vote.height)
    _check_signer("vote", known, vote.validator)
    if vote.step is Step.PREVOTE and vote.time_ms:
        raise VoteError("a prevote carries no time", time_ms=vote.time_ms)
    try:
        VOTES.verify(vote.validator, DOMAIN_VOTE, signed.vote, signed.signature)
    except CryptoError as error:
        raise VoteError(error.message, validator=vote.validator) from None
    return vote


def check_proposal(signed: SignedProposal, chain_id: Digest, height: Height, known: Mapping[bytes, int]) -> Proposal:
    """As ``check_vote``, for a proposal; whose turn it is, block and verdicts are the caller's to check."""
    try:
        proposal = decode(Proposal, signed.proposal, 512)
    except InputError as error:
        raise VoteError(f"proposal: {error.message}") from None
    _check_place("proposal", chain_id, height, proposal.chain_id, proposal.height)
    _check_signer("proposal", known, proposal.validator)
    if not -1 <= proposal.valid_round < proposal.round:
        raise VoteError(f"proposal of round {proposal.round} with valid round {proposal.valid_round}")
    _verify(proposal.validator, DOMAIN_PROPOSAL, signed.proposal, signed.signature)
    return proposal


def proposed_block(signed: SignedProposal, proposal: Proposal) -> Block:
    """The block that came with a proposal. Raises VoteError if it does not decode or is another one."""
    try:
        block = decode(Block, signed.block, MAX_BLOCK)
    except InputError as error:
        raise VoteError(f"proposal: {error.message}") from None
    if block.block_hash != proposal.block_hash:
        raise VoteError(f"a proposal for {short(proposal.block_hash)} brings block {short(block.block_hash)}")
    return block


def check_verdict(signed: SignedVerdict, chain_id: Digest, height: Height, known: Mapping[bytes, int]) -> Verdict:
    """As ``check_vote``, for a verdict; whether its claim exists is the caller's to check."""
    try:
        verdict = decode(Verdict, signed.verdict, 1024)
    except InputError as error:
        raise VoteError(f"verdict: {error.message}") from None
    _check_place("verdict", chain_id, height, verdict.chain_id, verdict.height)
    _check_signer("verdict", known, verdict.validator)
    _verify(verdict.validator, DOMAIN_VERDICT, signed.verdict, signed.signature)
    return verdict


def _verify(key: bytes, domain: bytes, message: bytes, signature: bytes) -> None:
    try:
        signing.verify(key, domain, message, signature)
    except CryptoError as error:
        raise VoteError(error.message, validator=key) from None

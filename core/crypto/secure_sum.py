"""Secure aggregation, the protocol: a manager learns the weighted sum of its participants' vectors and no single one.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), with the consistency check
of its section 6.2, over a complete graph. Who takes part is known by a name that verifies its signatures. Five steps, each one
message from the manager and one answer; who does not answer has dropped out and the rest go on while ``threshold`` are left.

1. advert    two public keys, a commitment to the self mask's seed b, and the number of examples; signed
2. share     shares of b and of the mask key's private half, sealed to each of the roster, and a commitment to each share
3. mask      weight * vector + PRG(b) + sum over peers of +-PRG(pair): the pairs' masks cancel between two who both arrive;
             and a digest of each pair of shares that it was dealt
4. consent   signature on who arrived: the survivors
5. reveal    with threshold consents: shares of b of each survivor, shares of the mask key of each who shared and did not arrive

An honest participant gives of each peer one share only, never both, and only for survivors that threshold participants signed.
So the manager can remove either the self mask or the pairwise masks of a vector, never both from one that it wants to see
alone. Weights are not the manager's to choose, who could make all but one vanish: they follow from the signed adverts by a
rule (``Weigh``) that each participant applies for itself.

Each share can be checked alone: who reveals one that its dealer did not commit to is refused at once, by name. Who was dealt
other shares than its dealer committed to is not blamed, since its digest said so before anything was revealed. What one says
against the other is a *conflict*: one of the two is wrong, and nobody else can know which (docs/adr/0117).

Nothing here is I/O: machines take and give values. ``Signer`` and ``Verify`` come from outside, as do coins.
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from core.codec import decode, encode
from core.crypto import sealing
from core.crypto.masking import MAX_WEIGHT, mask, pair_key, share_secret, threshold, to_fixed_point
from core.crypto.secure_messages import (
    LEAST,
    SHARE_LABEL,
    Advert,
    Consent,
    Dealt,
    Masked,
    Reveal,
    ShareSet,
    Signer,
    Verify,
    Weigh,
    advert_message,
    check_consents,
    check_roster,
    check_survivors,
    consent_message,
    held_digest,
    pair_context,
    place_of,
    roster_digest,
    seed_commitment,
    self_key,
    share_commitments,
)
from core.errors import CheatingError, LimitError, MalformedError, PoflError, SequenceError
from core.ports import Rng

__all__ = ["Participant"]


class _Stage(IntEnum):
    NEW = 0
    ADVERTISED = 1
    SHARED = 2
    MASKED = 3
    AGREED = 4
    REVEALED = 5
    BROKEN = 6
    """A step failed. It is not tried again: what was answered once is never answered another way."""


class Participant:
    """One participant in one session, used once. Each step may be taken once and in order, else SequenceError.

    ``session``: what this sum is for; adverts, shares and consents of another session are worthless here.
    ``least``: of how many a roster must be that this participant takes part in; threshold of them are in the sum at least.
    """

    def __init__(
        self,
        session: bytes,
        name: bytes,
        suite: sealing.Suite,
        weigh: Weigh,
        sign: Signer,
        verify: Verify,
        rng: Rng,
        least: int = LEAST,
    ) -> None:
        self._session, self._name, self._suite = session, name, suite
        self._weigh, self._sign, self._verify, self._rng, self._least = weigh, sign, verify, rng, max(least, LEAST)
        self._stage = _Stage.NEW
        self._seed = rng.bytes(32)
        self._mask_key = rng.bytes(32)
        self._share_key = sealing.SealingKeyPair.generate(rng, suite)
        self._roster: tuple[Advert, ...] = ()
        self._index = -1
        self._shared: frozenset[int] = frozenset()
        self._held: dict[int, ShareSet] = {}
        self._survivors: tuple[int, ...] = ()

    def advert(self, examples: int) -> Advert:
        """Step 1. Raises LimitError for a number of examples that no sum holds."""
        self._step(_Stage.NEW)
        if not 1 <= examples <= MAX_WEIGHT:
            raise LimitError(f"{examples} examples, secure aggregation takes 1 to {MAX_WEIGHT}", examples=examples)
        public = X25519PrivateKey.from_private_bytes(self._mask_key).public_key().public_bytes_raw()
        bare = Advert(self._name, public, self._share_key.public_key, seed_commitment(self._seed), examples, b"")
        self._advert = replace(bare, signature=self._sign(advert_message(self._session, bare)))
        self._stage = _Stage.ADVERTISED
        return self._advert

    def share(self, roster: tuple[Advert, ...]) -> Dealt:
        """Step 2: sealed shares for each of the roster, and what they can be checked by.

        Raises CheatingError, CryptoError or LimitError for a roster that it would be unsafe to take part in.
        """
        self._step(_Stage.ADVERTISED)
        check_roster(self._session, roster, self._suite, self._verify)
        if len(roster) < self._least:
            raise LimitError(f"a sum of {len(roster)}, this miner takes part in sums of at least {self._least}")
        if self._advert not in roster:
            raise CheatingError("the roster does not name this miner as it advertised itself")
        self._roster, self._index = roster, roster.index(self._advert)
        count, needed = len(roster), threshold(len(roster))
        seeds = share_secret(self._seed, needed, count, self._rng)
        keys = share_secret(self._mask_key, needed, count, self._rng)
        digest = roster_digest(self._session, roster)
        sealed, commitments = [], []
        for peer, advert in enumerate(roster):
            shares = ShareSet(seeds[peer], keys[peer])
            commitments.append(share_commitments(place_of(digest, self._index, peer), shares))
            if peer == self._index:
                self._held[peer] = shares
                sealed.append(b"")
            else:
                place = place_of(digest, self._index, peer)
                sealed.append(sealing.seal(advert.share_key, encode(shares), SHARE_LABEL, place, self._suite))
        self._stage = _Stage.SHARED
        return Dealt(tuple(sealed), tuple(commitments))

    def mask(self, vector: NDArray[np.float64], inbox: tuple[bytes, ...]) -> Masked:
        """Step 3: the vector weighted and masked. ``inbox``: by the roster, what each sealed to this one, empty if it did not.

        A peer whose shares do not open stays a peer: its masks cancel, only nothing can be restored with this one's help. The
        digests say which did, before anybody is asked to reveal one.

        Raises LimitError when fewer than threshold are left, MalformedError (not finite).
        """
        self._step(_Stage.SHARED)
        if len(inbox) != len(self._roster):
            raise MalformedError(f"shares of {len(inbox)}, the roster has {len(self._roster)}")
        digest = roster_digest(self._session, self._roster)
        self._shared = frozenset({self._index, *(peer for peer, sealed in enumerate(inbox) if sealed)})
        if len(self._shared) < threshold(len(self._roster)):
            raise LimitError(f"{len(self._shared)} of {len(self._roster)} are left, {threshold(len(self._roster))} are needed")
        masked = to_fixed_point(vector, self._weigh([advert.examples for advert in self._roster])[self._index], self._rng)
        masked += mask(self_key(self._seed, digest), masked.size)
        for peer in sorted(self._shared - {self._index}):
            try:
                plain = sealing.open_(
                    self._share_key.private_key, inbox[peer], SHARE_LABEL, place_of(digest, peer, self._index), self._suite
                )
                self._held[peer] = decode(ShareSet, plain)
            except PoflError:
                pass
            key = pair_key(self._mask_key, self._roster[peer].mask_key, pair_context(digest, self._index, peer))
            if self._index < peer:
                masked += mask(key, masked.size)
            else:
                masked -= mask(key, masked.size)
        held = tuple(
            held_digest(share_commitments(place_of(digest, peer, self._index), self._held[peer])) if peer in self._held else b""
            for peer in range(len(self._roster))
        )
        self._stage = _Stage.MASKED
        return Masked(masked, held)

    def consent(self, survivors: tuple[int, ...]) -> Consent:
        """Step 4. Raises CheatingError for survivors that are too few, unknown, or not this one."""
        self._step(_Stage.MASKED)
        check_survivors(survivors, self._roster)
        if self._index not in survivors or not set(survivors) <= self._shared:
            raise CheatingError("the survivors are not this miner and others who shared")
        self._survivors = survivors
        self._stage = _Stage.AGREED
        return Consent(self._index, self._sign(consent_message(self._session, self._roster, survivors)))

    def reveal(self, consents: tuple[Consent, ...]) -> Reveal:
        """Step 5, the last. Raises CheatingError without threshold consents, CryptoError for a false one."""
        self._step(_Stage.AGREED)
        check_consents(self._session, self._roster, self._survivors, consents, self._verify)
        shares = []
        for peer in range(len(self._roster)):
            held = self._held.get(peer)
            if held is None or peer not in self._shared:
                shares.append(b"")
            else:
                shares.append(held.seed if peer in self._survivors else held.mask_key)
        self._held.clear()
        self._stage = _Stage.REVEALED
        return Reveal(tuple(shares))

    def _step(self, expected: _Stage) -> None:
        if self._stage is not expected:
            raise SequenceError(f"this miner's part in the sum is {self._stage.name.lower()}, not {expected.name.lower()}")
        self._stage = _Stage.BROKEN

"""Secure aggregation, the manager's side of secure_sum.py: it gathers five steps and takes the masks off the sum.

Each share can be checked alone, so no secret is searched for among wrong shares, and whoever is named is at fault
(docs/adr/0117).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.crypto import sealing
from core.crypto.masking import (
    MAX_WEIGHT,
    SHARE_SIZE,
    Residues,
    check_mask_key,
    from_fixed_point,
    mask,
    pair_key,
    restore_secret,
    threshold,
)
from core.crypto.secure_messages import (
    DIGEST_SIZE,
    LEAST,
    SHARE_LABEL,
    Advert,
    Consent,
    Dealt,
    Reveal,
    Sum,
    Verify,
    Weigh,
    check_advert,
    consent_message,
    held_digest,
    mask_public,
    pair_context,
    place_of,
    roster_digest,
    seed_commitment,
    self_key,
    share_commitment,
)
from core.errors import CheatingError, CryptoError, LimitError, MalformedError, PoflError

__all__ = ["Collector"]


class Collector:
    """The manager's side of one session: takes what participants send, by name in step 1 and by roster index after it.

    Each ``take_`` raises a typed error for what is wrong, which costs its sender its place, and changes nothing then.
    """

    def __init__(self, session: bytes, size: int, suite: sealing.Suite, weigh: Weigh, verify: Verify) -> None:
        self._session, self._size, self._suite, self._weigh, self._verify = session, size, suite, weigh, verify
        self._adverts: dict[bytes, Advert] = {}
        self.roster: tuple[Advert, ...] = ()
        self._dealt: dict[int, Dealt] = {}
        self._conflicts: set[tuple[int, int]] = set()
        self._masked: dict[int, Residues] = {}
        self.survivors: tuple[int, ...] = ()
        self._consents: dict[int, Consent] = {}
        self._reveals: dict[int, Reveal] = {}

    @property
    def needed(self) -> int:
        return threshold(len(self.roster))

    def index(self, name: bytes) -> int:
        return next(i for i, advert in enumerate(self.roster) if advert.name == name)

    def take_advert(self, name: bytes, advert: Advert, most_examples: int) -> None:
        if advert.name != name:
            raise CheatingError("the advert is another miner's")
        if not 1 <= advert.examples <= min(most_examples, MAX_WEIGHT):
            raise CheatingError(f"{advert.examples} examples, registered {most_examples}, at most {MAX_WEIGHT}")
        check_advert(self._session, advert, self._suite, self._verify)
        # Keys that nothing can be done with would make every other participant fail.
        check_mask_key(advert.mask_key)
        sealing.seal(advert.share_key, b"", SHARE_LABEL, b"", self._suite)
        self._adverts[name] = advert

    def close_roster(self) -> tuple[Advert, ...]:
        """Who takes part, in the order of names. Raises LimitError when that is too few."""
        if len(self._adverts) < LEAST:
            raise LimitError(f"{len(self._adverts)} take part, a secure sum needs {LEAST}")
        self.roster = tuple(self._adverts[name] for name in sorted(self._adverts))
        return self.roster

    @property
    def conflicts(self) -> frozenset[tuple[bytes, bytes]]:
        """Names of dealers and of holders who say that they were dealt other shares than the dealer committed to."""
        return frozenset((self.roster[dealer].name, self.roster[holder].name) for dealer, holder in self._conflicts)

    def take_shares(self, index: int, dealt: Dealt) -> None:
        expected, count = 2 * SHARE_SIZE + self._suite.overhead, len(self.roster)
        sealed = dealt.sealed
        if len(sealed) != count or any(len(s) != (0 if i == index else expected) for i, s in enumerate(sealed)):
            raise MalformedError(f"shares for {len(sealed)}, the roster has {count}, each {expected} bytes")
        if len(dealt.commitments) != count or any(len(c) != 2 * DIGEST_SIZE for c in dealt.commitments):
            raise MalformedError(
                f"commitments for {len(dealt.commitments)}, the roster has {count}, each {2 * DIGEST_SIZE} bytes"
            )
        self._dealt[index] = dealt

    def inboxes(self) -> dict[int, tuple[bytes, ...]]:
        """What each that shared gets. Raises LimitError when those are too few."""
        if len(self._dealt) < self.needed:
            raise LimitError(f"{len(self._dealt)} of {len(self.roster)} shared their keys, {self.needed} are needed")
        return {
            index: tuple(self._dealt[peer].sealed[index] if peer in self._dealt else b"" for peer in range(len(self.roster)))
            for index in self._dealt
        }

    def take_masked(self, index: int, data: bytes, held: tuple[bytes, ...]) -> None:
        if len(data) != 8 * self._size:
            raise MalformedError(f"{len(data)} bytes, a masked vector of {self._size} numbers has {8 * self._size}")
        if len(held) != len(self.roster) or any(len(digest) not in (0, DIGEST_SIZE) for digest in held):
            raise MalformedError(
                f"digests of shares of {len(held)}, the roster has {len(self.roster)}, each {DIGEST_SIZE} bytes"
            )
        self._masked[index] = np.frombuffer(data, dtype="<u8").astype(np.uint64)
        self._conflicts |= {
            (peer, index) for peer, dealt in self._dealt.items() if held[peer] != held_digest(dealt.commitments[index])
        }

    def close_masked(self) -> tuple[int, ...]:
        """The survivors.

        Raises LimitError when they are too few, CryptoError when somebody's secret will not come back (``values["names"]``:
        who is certainly at fault, if fewer than a third of the roster lie).
        """
        if len(self._masked) < self.needed:
            raise LimitError(f"{len(self._masked)} of {len(self.roster)} masked vectors came, {self.needed} are needed")
        lost = [dealer for dealer in self._dealt if self._holders(dealer) < self.needed]
        if lost:
            # With fewer than a third of liars, so many do not say the same of an honest dealer.
            most = len(self.roster) - self.needed
            against = {dealer: sum(d == dealer for d, _ in self._conflicts) for dealer in lost}
            raise self._unrestored(lost, [dealer for dealer in lost if against[dealer] > most])
        self.survivors = tuple(sorted(self._masked))
        return self.survivors

    def take_consent(self, index: int, consent: Consent) -> None:
        if consent.index != index:
            raise CheatingError("the consent is another miner's")
        self._verify(self.roster[index].name, consent_message(self._session, self.roster, self.survivors), consent.signature)
        self._consents[index] = consent

    def consents(self) -> tuple[Consent, ...]:
        """Raises LimitError when there are too few."""
        if len(self._consents) < self.needed:
            raise LimitError(f"{len(self._consents)} of {len(self.roster)} agreed on who is left, {self.needed} are needed")
        return tuple(self._consents[index] for index in sorted(self._consents))

    def take_reveal(self, index: int, reveal: Reveal) -> None:
        """Raises CheatingError for a share that its dealer did not commit to, or that was held and is kept back."""
        if len(reveal.shares) != len(self.roster) or any(len(s) not in (0, SHARE_SIZE) for s in reveal.shares):
            raise MalformedError(f"{len(reveal.shares)} shares, the roster has {len(self.roster)}, each {SHARE_SIZE} bytes")
        digest = roster_digest(self._session, self.roster)
        wrong = []
        for dealer, dealt in self._dealt.items():
            if (dealer, index) in self._conflicts:
                continue
            kind = 0 if dealer in self.survivors else 1
            due = dealt.commitments[index][kind * DIGEST_SIZE : (kind + 1) * DIGEST_SIZE]
            if share_commitment(place_of(digest, dealer, index), kind, reveal.shares[dealer]) != due:
                wrong.append(dealer)
        if wrong:
            whose = ", ".join(self.roster[dealer].name.hex()[:16] for dealer in wrong[:3])
            raise CheatingError(f"{len(wrong)} of the shares are not those that it said it held, the first of {whose}")
        self._reveals[index] = reveal

    def total(self) -> Sum:
        """Unmask the sum of the survivors.

        Raises:
            CryptoError: secrets are not restored (``values["names"]``: who is certainly at fault), or the sum is out of range.
        """
        digest = roster_digest(self._session, self.roster)
        lost, secrets, wrong = [], dict[int, bytes](), []
        for owner in self._dealt:
            if self._holders(owner) < self.needed:
                lost.append(owner)
            elif (secret := self._restore(owner)) is None:
                wrong.append(owner)
            else:
                secrets[owner] = secret
        if lost or wrong:
            raise self._unrestored([*lost, *wrong], wrong)
        total = np.zeros(self._size, dtype=np.uint64)
        for vector in self._masked.values():
            total += vector
        for owner, secret in secrets.items():
            if owner in self.survivors:
                total -= mask(self_key(secret, digest), self._size)
                continue
            for index in self.survivors:
                key = pair_key(secret, self.roster[index].mask_key, pair_context(digest, owner, index))
                if index < owner:
                    total -= mask(key, self._size)
                else:
                    total += mask(key, self._size)
        all_weights = self._weigh([advert.examples for advert in self.roster])
        weight = sum(all_weights[index] for index in self.survivors)
        names = tuple(self.roster[index].name for index in self.survivors)
        return Sum(from_fixed_point(total, weight), weight, names)

    def _holders(self, dealer: int) -> int:
        """How many good shares there are of a dealer's secrets: of those still there, who said so, or gave one."""
        there = self._reveals if self._reveals else self._masked
        return sum((dealer, holder) not in self._conflicts for holder in there)

    def _restore(self, owner: int) -> bytes | None:
        """The self mask's seed of a survivor, else the mask key. None: shares that the owner committed to do not give it."""
        chosen = [holder for holder in self._reveals if (owner, holder) not in self._conflicts][: self.needed]
        try:
            secret = restore_secret({holder + 1: self._reveals[holder].shares[owner] for holder in chosen})
        except PoflError:
            return None
        advert = self.roster[owner]
        is_right = (
            seed_commitment(secret) == advert.commitment if owner in self.survivors else mask_public(secret) == advert.mask_key
        )
        return secret if is_right else None

    def _unrestored(self, owners: Sequence[int], at_fault: Sequence[int]) -> CryptoError:
        whose = ", ".join(self.roster[owner].name.hex()[:16] for owner in owners[:3])
        said = "; it dealt wrong shares" if list(owners) == list(at_fault) else ""
        return CryptoError(
            f"secrets of {len(owners)} cannot be restored, with {self.needed} good shares of each they could: {whose}{said}",
            names=tuple(self.roster[index].name for index in at_fault),
        )

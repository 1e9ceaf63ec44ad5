"""Secure aggregation, the protocol: a manager learns the weighted sum of its participants' vectors and no single one.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), with the consistency check
of its section 6.2, over a complete graph. Who takes part is known by a name that verifies its signatures. Five steps, each one
message from the manager and one answer; who does not answer has dropped out and the rest go on while ``threshold`` are left.

1. advert    two public keys, a commitment to the self mask's seed b, and the number of examples; signed
2. share     shares of b and of the mask key's private half, sealed to each of the roster
3. mask      weight * vector + PRG(b) + sum over peers of +-PRG(pair): the pairs' masks cancel between two who both arrive
4. consent   signature on who arrived: the survivors
5. reveal    with threshold consents: shares of b of each survivor, shares of the mask key of each who shared and did not arrive

An honest participant gives of each peer one share only, never both, and only for survivors that threshold participants signed.
So the manager can remove either the self mask or the pairwise masks of a vector, never both from one that it wants to see
alone. Weights are not the manager's to choose, who could make all but one vanish: they follow from the signed adverts by a
rule (``Weigh``) that each participant applies for itself.

Nothing here is I/O: machines take and give values. ``Signer`` and ``Verify`` come from outside, as do coins.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Annotated, Final, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from core.codec import U8, U64, Fixed, Record, Seq, Var, decode, encode
from core.crypto import sealing
from core.crypto.masking import (
    MAX_PARTICIPANTS,
    MAX_WEIGHT,
    SHARE_SIZE,
    Residues,
    check_mask_key,
    from_fixed_point,
    mask,
    pair_key,
    restore_secret,
    share_at,
    share_secret,
    threshold,
    to_fixed_point,
)
from core.errors import CheatingError, CryptoError, LimitError, MalformedError, PoflError, SequenceError
from core.ports import Rng

__all__ = [
    "LEAST", "MAX_SEALED_SHARES", "NAME_SIZE", "Advert", "Collector", "Consent", "Participant", "Reveal", "Signer", "Sum",
    "Verify", "Weigh",
]  # fmt: skip

NAME_SIZE: Final = 33
LEAST: Final = 3
"""Of two, each knows the other's vector from the sum; fewer than this never take part."""
MAX_TRIES: Final = 500
"""Choices of shares that are tried when some are wrong."""
ADVERT_LABEL: Final = b"pofl/secure-aggregation/advert/v1"
COMMIT_LABEL: Final = b"pofl/secure-aggregation/commitment/v1"
CONSENT_LABEL: Final = b"pofl/secure-aggregation/consent/v1"
ROSTER_LABEL: Final = b"pofl/secure-aggregation/roster/v1"
SELF_LABEL: Final = b"pofl/secure-aggregation/self/v1"
SHARE_LABEL: Final = b"pofl/secure-aggregation/share/v1"

Signer: TypeAlias = Callable[[bytes], bytes]
Verify: TypeAlias = Callable[[bytes, bytes, bytes], None]
"""(name, message, signature); raises CryptoError."""
Weigh: TypeAlias = Callable[[Sequence[int]], Sequence[int]]
"""Examples of everybody -> what everybody's vector counts for, 1 to its examples. The same for all: name it in the session."""


@dataclass(frozen=True, slots=True)
class Advert:
    """Step 1: who takes part, under which keys, and with how many examples."""

    name: Annotated[bytes, Fixed(NAME_SIZE)]
    mask_key: Annotated[bytes, Fixed(32)]
    """X25519; its private half is shared in step 2."""
    share_key: Annotated[bytes, Var(sealing.MAX_PUBLIC_KEY)]
    """What others seal its shares to."""
    commitment: Annotated[bytes, Fixed(32)]
    """Hash of the seed of its self mask, so that a wrong share is noticed."""
    examples: Annotated[int, U64]
    signature: Annotated[bytes, Var(80)]


@dataclass(frozen=True, slots=True)
class _Shares:
    """What is sealed to one peer in step 2."""

    seed: Annotated[bytes, Fixed(SHARE_SIZE)]
    mask_key: Annotated[bytes, Fixed(SHARE_SIZE)]


MAX_SEALED_SHARES: Final = 2 * SHARE_SIZE + sealing.MAX_OVERHEAD


@dataclass(frozen=True, slots=True)
class Consent:
    """Step 4: one survivor's signature on the survivors."""

    index: Annotated[int, U8]
    signature: Annotated[bytes, Var(80)]


@dataclass(frozen=True, slots=True)
class Reveal:
    """Step 5: for each of the roster the share that its fate calls for, or nothing. Seeds of survivors, else mask keys."""

    shares: Annotated[tuple[bytes, ...], Seq(Var(SHARE_SIZE), MAX_PARTICIPANTS)]


@dataclass(frozen=True, slots=True)
class _Roster:
    session: Annotated[bytes, Var(256)]
    adverts: Annotated[tuple[Advert, ...], Seq(Record(Advert), MAX_PARTICIPANTS)]


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """``mean``: of the survivors' vectors, weighted. ``weight``: the sum of their weights."""

    mean: NDArray[np.float64]
    weight: int
    survivors: tuple[bytes, ...]


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
        self._held: dict[int, _Shares] = {}
        self._survivors: tuple[int, ...] = ()

    def advert(self, examples: int) -> Advert:
        """Step 1. Raises LimitError for a number of examples that no sum holds."""
        self._step(_Stage.NEW)
        if not 1 <= examples <= MAX_WEIGHT:
            raise LimitError(f"{examples} examples, secure aggregation takes 1 to {MAX_WEIGHT}", examples=examples)
        public = X25519PrivateKey.from_private_bytes(self._mask_key).public_key().public_bytes_raw()
        bare = Advert(self._name, public, self._share_key.public_key, _commitment(self._seed), examples, b"")
        self._advert = replace(bare, signature=self._sign(_advert_message(self._session, bare)))
        self._stage = _Stage.ADVERTISED
        return self._advert

    def share(self, roster: tuple[Advert, ...]) -> tuple[bytes, ...]:
        """Step 2: sealed shares, one for each of the roster, empty for oneself.

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
        digest = _roster_digest(self._session, roster)
        sealed = []
        for peer, advert in enumerate(roster):
            shares = _Shares(seeds[peer], keys[peer])
            if peer == self._index:
                self._held[peer] = shares
                sealed.append(b"")
            else:
                place = _place(digest, self._index, peer)
                sealed.append(sealing.seal(advert.share_key, encode(shares), SHARE_LABEL, place, self._suite))
        self._stage = _Stage.SHARED
        return tuple(sealed)

    def mask(self, vector: NDArray[np.float64], inbox: tuple[bytes, ...]) -> Residues:
        """Step 3: the vector weighted and masked. ``inbox``: by the roster, what each sealed to this one, empty if it did not.

        A peer whose shares do not open stays a peer: its masks cancel, only nothing can be restored with this one's help.

        Raises LimitError when fewer than threshold are left, MalformedError (not finite).
        """
        self._step(_Stage.SHARED)
        if len(inbox) != len(self._roster):
            raise MalformedError(f"shares of {len(inbox)}, the roster has {len(self._roster)}")
        digest = _roster_digest(self._session, self._roster)
        self._shared = frozenset({self._index, *(peer for peer, sealed in enumerate(inbox) if sealed)})
        if len(self._shared) < threshold(len(self._roster)):
            raise LimitError(f"{len(self._shared)} of {len(self._roster)} are left, {threshold(len(self._roster))} are needed")
        masked = to_fixed_point(vector, self._weigh([advert.examples for advert in self._roster])[self._index])
        masked += mask(_self_key(self._seed, digest), masked.size)
        for peer in sorted(self._shared - {self._index}):
            try:
                plain = sealing.open_(
                    self._share_key.private_key, inbox[peer], SHARE_LABEL, _place(digest, peer, self._index), self._suite
                )
                self._held[peer] = decode(_Shares, plain)
            except PoflError:
                pass
            key = pair_key(self._mask_key, self._roster[peer].mask_key, _pair_context(digest, self._index, peer))
            if self._index < peer:
                masked += mask(key, masked.size)
            else:
                masked -= mask(key, masked.size)
        self._stage = _Stage.MASKED
        return masked

    def consent(self, survivors: tuple[int, ...]) -> Consent:
        """Step 4. Raises CheatingError for survivors that are too few, unknown, or not this one."""
        self._step(_Stage.MASKED)
        _check_survivors(survivors, self._roster)
        if self._index not in survivors or not set(survivors) <= self._shared:
            raise CheatingError("the survivors are not this miner and others who shared")
        self._survivors = survivors
        self._stage = _Stage.AGREED
        return Consent(self._index, self._sign(_consent_message(self._session, self._roster, survivors)))

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


class Collector:
    """The manager's side of one session: takes what participants send, by name in step 1 and by roster index after it.

    Each ``take_`` raises a typed error for what is wrong, which costs its sender its place, and changes nothing then.
    """

    def __init__(self, session: bytes, size: int, suite: sealing.Suite, weigh: Weigh, verify: Verify) -> None:
        self._session, self._size, self._suite, self._weigh, self._verify = session, size, suite, weigh, verify
        self._adverts: dict[bytes, Advert] = {}
        self.roster: tuple[Advert, ...] = ()
        self._sealed: dict[int, tuple[bytes, ...]] = {}
        self._masked: dict[int, Residues] = {}
        self.survivors: tuple[int, ...] = ()
        self._consents: dict[int, Consent] = {}
        self._reveals: dict[int, Reveal] = {}
        self._liars: set[int] = set()

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
        _check_advert(self._session, advert, self._suite, self._verify)
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

    def take_shares(self, index: int, sealed: tuple[bytes, ...]) -> None:
        expected = 2 * SHARE_SIZE + self._suite.overhead
        if len(sealed) != len(self.roster) or any(len(s) != (0 if i == index else expected) for i, s in enumerate(sealed)):
            raise MalformedError(f"shares for {len(sealed)}, the roster has {len(self.roster)}, each {expected} bytes")
        self._sealed[index] = sealed

    def inboxes(self) -> dict[int, tuple[bytes, ...]]:
        """What each that shared gets. Raises LimitError when those are too few."""
        if len(self._sealed) < self.needed:
            raise LimitError(f"{len(self._sealed)} of {len(self.roster)} shared their keys, {self.needed} are needed")
        return {
            index: tuple(self._sealed[peer][index] if peer in self._sealed else b"" for peer in range(len(self.roster)))
            for index in self._sealed
        }

    def take_masked(self, index: int, data: bytes) -> None:
        if len(data) != 8 * self._size:
            raise MalformedError(f"{len(data)} bytes, a masked vector of {self._size} numbers has {8 * self._size}")
        self._masked[index] = np.frombuffer(data, dtype="<u8").astype(np.uint64)

    def close_masked(self) -> tuple[int, ...]:
        """The survivors. Raises LimitError when they are too few."""
        if len(self._masked) < self.needed:
            raise LimitError(f"{len(self._masked)} of {len(self.roster)} masked vectors came, {self.needed} are needed")
        self.survivors = tuple(sorted(self._masked))
        return self.survivors

    def take_consent(self, index: int, consent: Consent) -> None:
        if consent.index != index:
            raise CheatingError("the consent is another miner's")
        self._verify(self.roster[index].name, _consent_message(self._session, self.roster, self.survivors), consent.signature)
        self._consents[index] = consent

    def consents(self) -> tuple[Consent, ...]:
        """Raises LimitError when there are too few."""
        if len(self._consents) < self.needed:
            raise LimitError(f"{len(self._consents)} of {len(self.roster)} agreed on who is left, {self.needed} are needed")
        return tuple(self._consents[index] for index in sorted(self._consents))

    def take_reveal(self, index: int, reveal: Reveal) -> None:
        if len(reveal.shares) != len(self.roster) or any(len(s) not in (0, SHARE_SIZE) for s in reveal.shares):
            raise MalformedError(f"{len(reveal.shares)} shares, the roster has {len(self.roster)}, each {SHARE_SIZE} bytes")
        self._reveals[index] = reveal

    def total(self) -> Sum:
        """Unmask the sum of the survivors.

        Raises:
            CryptoError: a secret is not restored (``values["name"]``: whose), or the sum is out of range.
        """
        digest = _roster_digest(self._session, self.roster)
        total = np.zeros(self._size, dtype=np.uint64)
        for vector in self._masked.values():
            total += vector
        for index in self.survivors:
            seed = self._restore(index, _commitment, self.roster[index].commitment)
            total -= mask(_self_key(seed, digest), self._size)
        for lost in sorted(set(self._sealed) - set(self.survivors)):
            private = self._restore(lost, _mask_public, self.roster[lost].mask_key)
            for index in self.survivors:
                key = pair_key(private, self.roster[index].mask_key, _pair_context(digest, lost, index))
                if index < lost:
                    total -= mask(key, self._size)
                else:
                    total += mask(key, self._size)
        all_weights = self._weigh([advert.examples for advert in self.roster])
        weight = sum(all_weights[index] for index in self.survivors)
        names = tuple(self.roster[index].name for index in self.survivors)
        return Sum(from_fixed_point(total, weight), weight, names)

    def _restore(self, owner: int, public_of: Callable[[bytes], bytes], public: bytes) -> bytes:
        """The secret of which this much is public, from the first choice of shares that gives it."""
        shares = {
            holder + 1: reveal.shares[owner]
            for holder, reveal in self._reveals.items()
            if reveal.shares[owner] and holder not in self._liars
        }
        for number, chosen in enumerate(_choices(shares, self.needed)):
            right = {x: shares[x] for x in chosen}
            try:
                secret = restore_secret(right)
            except PoflError:
                continue
            if public_of(secret) == public:
                if number:
                    # Who gave a wrong share once is asked for no other: the search is made once, not for each secret.
                    self._liars |= {x - 1 for x in shares if share_at(right, x) != shares[x]}
                return secret
        raise CryptoError(
            f"{len(shares)} shares do not restore a secret of {self.roster[owner].name.hex()[:16]}, {self.needed} do",
            name=self.roster[owner].name,
        )


def check_roster(session: bytes, roster: Sequence[Advert], suite: sealing.Suite, verify: Verify) -> None:
    """Raises LimitError (size), CheatingError (order, or a key twice) or CryptoError (a signature)."""
    if not LEAST <= len(roster) <= MAX_PARTICIPANTS:
        raise LimitError(f"a roster of {len(roster)}, must be {LEAST} to {MAX_PARTICIPANTS}")
    names = [advert.name for advert in roster]
    if names != sorted(set(names)):
        raise CheatingError("the roster is not in the order of names, each once")
    for what, keys in (("mask", [a.mask_key for a in roster]), ("share", [a.share_key for a in roster])):
        if len(set(keys)) != len(keys):
            raise CheatingError(f"two of the roster have one {what} key")
    for advert in roster:
        if not 1 <= advert.examples <= MAX_WEIGHT:
            raise LimitError(f"{advert.examples} examples in the roster, must be 1 to {MAX_WEIGHT}")
        _check_advert(session, advert, suite, verify)


def check_consents(
    session: bytes, roster: Sequence[Advert], survivors: tuple[int, ...], consents: Sequence[Consent], verify: Verify
) -> None:
    """Raises CheatingError unless threshold different survivors signed the survivors, CryptoError for a false signature."""
    signers = {consent.index for consent in consents}
    if len(signers) != len(consents) or len(signers) < threshold(len(roster)) or not signers <= set(survivors):
        raise CheatingError(f"{len(signers)} survivors agreed on who is left, {threshold(len(roster))} are needed")
    message = _consent_message(session, roster, survivors)
    for consent in consents:
        verify(roster[consent.index].name, message, consent.signature)


def _check_advert(session: bytes, advert: Advert, suite: sealing.Suite, verify: Verify) -> None:
    if len(advert.share_key) != suite.public_key_size:
        raise MalformedError(f"a share key of {len(advert.share_key)} bytes, {suite.label} has {suite.public_key_size}")
    verify(advert.name, _advert_message(session, advert), advert.signature)


def _check_survivors(survivors: tuple[int, ...], roster: Sequence[Advert]) -> None:
    if list(survivors) != sorted(set(survivors)) or not set(survivors) <= set(range(len(roster))):
        raise CheatingError("the survivors are not of the roster, each once and in order")
    if len(survivors) < threshold(len(roster)):
        raise CheatingError(f"{len(survivors)} of {len(roster)} survivors, {threshold(len(roster))} are needed")


def _advert_message(session: bytes, advert: Advert) -> bytes:
    return ADVERT_LABEL + len(session).to_bytes(4, "big") + session + encode(replace(advert, signature=b""))


def _roster_digest(session: bytes, roster: Sequence[Advert]) -> bytes:
    return hashlib.sha256(ROSTER_LABEL + encode(_Roster(session, tuple(roster)))).digest()


def _consent_message(session: bytes, roster: Sequence[Advert], survivors: tuple[int, ...]) -> bytes:
    return CONSENT_LABEL + _roster_digest(session, roster) + bytes(survivors)


def _choices(shares: Mapping[int, bytes], needed: int) -> Iterator[tuple[int, ...]]:
    """Choices of ``needed`` of them: in turn, so that each is left out of some; then by chance, which nobody can plan for."""
    places = sorted(shares)
    if len(places) < needed:
        return
    for first in range(len(places) if len(places) > needed else 1):
        yield tuple((places[first:] + places[:first])[:needed])
    if len(places) > needed:
        coins = random.Random(b"".join(shares[x] for x in places))  # a search, no secret
        for _ in range(MAX_TRIES - len(places)):
            yield tuple(coins.sample(places, needed))


def _place(digest: bytes, source: int, destination: int) -> bytes:
    return digest + bytes((source, destination))


def _pair_context(digest: bytes, one: int, other: int) -> bytes:
    return digest + bytes(sorted((one, other)))


def _commitment(seed: bytes) -> bytes:
    return hashlib.sha256(COMMIT_LABEL + seed).digest()


def _self_key(seed: bytes, digest: bytes) -> bytes:
    return hashlib.sha256(SELF_LABEL + seed + digest).digest()


def _mask_public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()

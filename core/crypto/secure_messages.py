"""Secure aggregation, what is sent: the records of secure_sum.py's five steps, what is hashed and signed of them, and checks
that both sides make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from core.codec import U8, U64, Fixed, Record, Seq, Var, encode
from core.crypto import sealing
from core.crypto.masking import MAX_PARTICIPANTS, MAX_WEIGHT, SHARE_SIZE, Residues, threshold
from core.errors import CheatingError, LimitError, MalformedError

__all__ = [
    "Advert", "Consent", "Dealt", "Masked", "Reveal", "RosterOf", "ShareSet", "Signer", "Sum", "Verify", "Weigh",
    "advert_message", "check_advert", "check_consents", "check_roster", "check_survivors", "consent_message", "held_digest",
    "mask_public", "pair_context", "place_of", "roster_digest", "seed_commitment", "self_key", "share_commitment",
    "share_commitments",
    "DIGEST_SIZE", "LEAST", "MAX_SEALED_SHARES", "NAME_SIZE", "SHARE_LABEL",
]  # fmt: skip

NAME_SIZE: Final = 33
LEAST: Final = 3
"""Of two, each knows the other's vector from the sum; fewer than this never take part."""
DIGEST_SIZE: Final = 32
ADVERT_LABEL: Final = b"pofl/secure-aggregation/advert/v1"
COMMIT_LABEL: Final = b"pofl/secure-aggregation/commitment/v1"
CONSENT_LABEL: Final = b"pofl/secure-aggregation/consent/v1"
ROSTER_LABEL: Final = b"pofl/secure-aggregation/roster/v1"
SELF_LABEL: Final = b"pofl/secure-aggregation/self/v1"
SHARE_LABEL: Final = b"pofl/secure-aggregation/share/v1"
SHARE_COMMIT_LABEL: Final = b"pofl/secure-aggregation/share-commitment/v1"
HELD_LABEL: Final = b"pofl/secure-aggregation/held-shares/v1"

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
class ShareSet:
    """What is sealed to one peer in step 2."""

    seed: Annotated[bytes, Fixed(SHARE_SIZE)]
    mask_key: Annotated[bytes, Fixed(SHARE_SIZE)]


MAX_SEALED_SHARES: Final = 2 * SHARE_SIZE + sealing.MAX_OVERHEAD


@dataclass(frozen=True, slots=True)
class Dealt:
    """Step 2, by the roster: what is sealed to each, empty to oneself; commitments to each one's two shares, 64 bytes."""

    sealed: Annotated[tuple[bytes, ...], Seq(Var(MAX_SEALED_SHARES), MAX_PARTICIPANTS)]
    commitments: Annotated[tuple[bytes, ...], Seq(Fixed(2 * DIGEST_SIZE), MAX_PARTICIPANTS)]


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """Step 3. ``held``: by the roster, the digest of the shares that each dealt to this one, empty where none opened."""

    vector: Residues
    held: tuple[bytes, ...]


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
class RosterOf:
    session: Annotated[bytes, Var(256)]
    adverts: Annotated[tuple[Advert, ...], Seq(Record(Advert), MAX_PARTICIPANTS)]


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """``mean``: of the survivors' vectors, weighted. ``weight``: the sum of their weights."""

    mean: NDArray[np.float64]
    weight: int
    survivors: tuple[bytes, ...]


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
        check_advert(session, advert, suite, verify)


def check_consents(
    session: bytes, roster: Sequence[Advert], survivors: tuple[int, ...], consents: Sequence[Consent], verify: Verify
) -> None:
    """Raises CheatingError unless threshold different survivors signed the survivors, CryptoError for a false signature."""
    signers = {consent.index for consent in consents}
    if len(signers) != len(consents) or len(signers) < threshold(len(roster)) or not signers <= set(survivors):
        raise CheatingError(f"{len(signers)} survivors agreed on who is left, {threshold(len(roster))} are needed")
    message = consent_message(session, roster, survivors)
    for consent in consents:
        verify(roster[consent.index].name, message, consent.signature)


def check_advert(session: bytes, advert: Advert, suite: sealing.Suite, verify: Verify) -> None:
    if len(advert.share_key) != suite.public_key_size:
        raise MalformedError(f"a share key of {len(advert.share_key)} bytes, {suite.label} has {suite.public_key_size}")
    verify(advert.name, advert_message(session, advert), advert.signature)


def check_survivors(survivors: tuple[int, ...], roster: Sequence[Advert]) -> None:
    if list(survivors) != sorted(set(survivors)) or not set(survivors) <= set(range(len(roster))):
        raise CheatingError("the survivors are not of the roster, each once and in order")
    if len(survivors) < threshold(len(roster)):
        raise CheatingError(f"{len(survivors)} of {len(roster)} survivors, {threshold(len(roster))} are needed")


def advert_message(session: bytes, advert: Advert) -> bytes:
    return ADVERT_LABEL + len(session).to_bytes(4, "big") + session + encode(replace(advert, signature=b""))


def roster_digest(session: bytes, roster: Sequence[Advert]) -> bytes:
    return hashlib.sha256(ROSTER_LABEL + encode(RosterOf(session, tuple(roster)))).digest()


def consent_message(session: bytes, roster: Sequence[Advert], survivors: tuple[int, ...]) -> bytes:
    return CONSENT_LABEL + roster_digest(session, roster) + bytes(survivors)


def place_of(digest: bytes, source: int, destination: int) -> bytes:
    return digest + bytes((source, destination))


def pair_context(digest: bytes, one: int, other: int) -> bytes:
    return digest + bytes(sorted((one, other)))


def seed_commitment(seed: bytes) -> bytes:
    return hashlib.sha256(COMMIT_LABEL + seed).digest()


def share_commitments(place: bytes, shares: ShareSet) -> bytes:
    return share_commitment(place, 0, shares.seed) + share_commitment(place, 1, shares.mask_key)


def share_commitment(place: bytes, kind: int, share: bytes) -> bytes:
    """Hides the share, as far as SHA-256 does: it is uniform in a field of 257 bits to whom fewer than threshold are known."""
    return hashlib.sha256(SHARE_COMMIT_LABEL + place + bytes((kind,)) + share).digest()


def held_digest(commitments: bytes) -> bytes:
    return hashlib.sha256(HELD_LABEL + commitments).digest()


def self_key(seed: bytes, digest: bytes) -> bytes:
    return hashlib.sha256(SELF_LABEL + seed + digest).digest()


def mask_public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()

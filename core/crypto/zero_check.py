"""The zero check: using a decryption service that may lie (design: verification, section 4).

The verifier V holds ciphertexts under R's key and wants to know that a linear form of their coefficients, plus a constant,
is zero modulo t. R may lie about it; V may try to use R as a decryption oracle. Both sides are here, without I/O:

    V: queries()              masked ciphertexts of one number each, one for each run
    R: commit(queries)        salted hash commitments to what they decrypt to
    V: reveal(commitments)    the numbers they must decrypt to, if the forms are zero
    R: open(mus)              openings of the runs that are equal; for the others, that they are not
    V: conclude(openings)     returns, or raises

R commits before she sees ``mu``: it has 33 bits and could be searched. V learns one bit a run, about a relation that it could
already state. R learns nothing: ``x0`` is uniform, ``x1`` hides the weights by RLWE, ``mu`` is a function of the mask.
Every run has its own form (own coins, own challenges) and its own mask.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from core.codec import DIGEST, U64, Fixed, Var, encode
from core.crypto.homomorphic import (
    PARAMS,
    HeParams,
    NumberMask,
    PublicKey,
    Residues,
    SecretKey,
    add,
    check_residues,
    compose,
    number_mask,
    pack,
    unpack,
)
from core.crypto.homomorphic.encryption import product_head
from core.errors import CheatingError, InconclusiveError, LimitError, MalformedError, SequenceError
from core.ports import Rng

__all__ = [
    "LinearForm", "MARGIN_BITS", "MAX_RUNS", "ZeroCheckResponder", "ZeroCheckVerifier", "ZeroCommitment", "ZeroOpening",
    "ZeroQuery",
]  # fmt: skip

MAX_RUNS = 16
MARGIN_BITS = 90
"""A mask nearer than 2^90 to a rounding boundary proves nothing (a chance of 2^-26 a run).

Honest noise stays below it but for a chance of 2^-128: at 10,000 samples of 256 features it is below 2^84.4, and
core.verification.noise refuses a task whose noise would come near (docs/adr/0066).
"""
LABEL_COMMITMENT = b"pofl/zero-check/commitment/1"
_SALT = 32


@dataclass(frozen=True, slots=True, eq=False)
class LinearForm:
    """What is to be zero: the number in (c0_0, c1), plus ``const``, modulo t.

    ``c0_0`` is coefficient 0 of c0's half, shape (L,); ``c1`` has shape (L, N). See homomorphic.linear_form.
    """

    c0_0: Residues
    c1: Residues
    const: int


@dataclass(frozen=True, slots=True)
class ZeroQuery:
    """One run: ``x0``, L residues of 64 bits, big-endian; ``x1``, a packed polynomial (153,600 bytes)."""

    x0: Annotated[bytes, Var(64)]
    x1: Annotated[bytes, Var(1 << 20)]

    def residues(self, params: HeParams = PARAMS) -> tuple[Residues, Residues]:
        """``(x0 (L,), x1 (L, N))``, checked.

        Raises:
            LimitError, MalformedError: a wrong length, a residue not below its prime, or ``x1 = 0``.
        """
        if len(self.x0) != 8 * params.limbs:
            raise MalformedError(f"x0 has {len(self.x0)} bytes, expected {8 * params.limbs}")
        x0 = np.frombuffer(self.x0, dtype=">u8").astype(np.uint64)
        if any(int(value) >= prime for value, prime in zip(x0, params.primes, strict=True)):
            raise MalformedError("a residue of x0 is not below its prime")
        x1 = unpack(self.x1, 1, params)[0]
        if not x1.any():
            raise MalformedError("x1 is zero: a query that hides nothing")
        return x0, x1


@dataclass(frozen=True, slots=True)
class ZeroCommitment:
    """SHA-256 over label, context, run, salt and the decrypted number."""

    digest: Annotated[bytes, DIGEST]


@dataclass(frozen=True, slots=True)
class ZeroOpening:
    """What was committed to. Sent only where it equals the verifier's number."""

    value: Annotated[int, U64]
    salt: Annotated[bytes, Fixed(_SALT)]


def _commitment(context: bytes, run: int, opening: ZeroOpening) -> ZeroCommitment:
    parts = (LABEL_COMMITMENT, context, run.to_bytes(4, "big"), encode(opening))
    return ZeroCommitment(hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest())


def _check_count(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise MalformedError(f"{got} {what} for {expected} runs")


class ZeroCheckVerifier:
    """V's side. ``context`` (transcript hash: chain, task, session, step) is the same on both sides."""

    def __init__(
        self,
        pk: PublicKey,
        forms: Sequence[LinearForm],
        rng: Rng,
        context: bytes = b"",
        margin_bits: int = MARGIN_BITS,
        masks: Sequence[NumberMask] = (),
    ) -> None:
        """``masks``: drawn beforehand for this check alone, one for each form; drawn here where left out."""
        if not 1 <= len(forms) <= MAX_RUNS:
            raise LimitError(f"{len(forms)} runs, from 1 to {MAX_RUNS}")
        params = pk.params
        self._params, self._context, self._margin = params, context, 1 << margin_bits
        self._queries: list[ZeroQuery] = []
        self._mus: list[int] = []
        self._doubtful: list[bool] = []
        self._commitments: tuple[ZeroCommitment, ...] | None = None
        self._concluded = False
        for form, mask in zip(forms, masks or [number_mask(pk, rng) for _ in forms], strict=True):
            self._prepare(form, mask)

    def _prepare(self, form: LinearForm, mask: NumberMask) -> None:
        params = self._params
        check_residues(form.c1, params)
        if any(int(value) >= prime for value, prime in zip(form.c0_0, params.primes, strict=True)):
            raise MalformedError("a residue of the form is not below its prime")
        x0 = add(form.c0_0[:, None], mask.head[:, None], params)[:, 0]
        x1 = add(form.c1, mask.tail, params)
        q, t = params.modulus, params.plain_modulus
        # 2 t mask + q = 2 q rounded + rest: rounding changes where rest passes 0 or 2q, and a noise v moves rest by 2 t v.
        rounded, rest = divmod(2 * t * compose([int(v) for v in mask.mask], params) + q, 2 * q)
        self._mus.append((rounded - form.const) % t)
        self._doubtful.append(min(rest, 2 * q - rest) <= 2 * t * self._margin)
        self._queries.append(ZeroQuery(x0.astype(">u8").tobytes(), pack(x1, params)))

    def queries(self) -> list[ZeroQuery]:
        """The first message, always the same one."""
        return list(self._queries)

    def reveal(self, commitments: Sequence[ZeroCommitment]) -> list[int]:
        """The numbers that R must have committed to. Another set of commitments later is refused.

        Raises:
            MalformedError: another number of commitments than of runs.
            SequenceError: other commitments than the first time.
        """
        _check_count("commitments", len(commitments), len(self._queries))
        if self._commitments is not None and self._commitments != tuple(commitments):
            raise SequenceError("other commitments after the numbers were revealed")
        self._commitments = tuple(commitments)
        return list(self._mus)

    def conclude(self, openings: Sequence[ZeroOpening | None]) -> None:
        """Return if every run opens to its number; None stands for "not equal".

        Raises:
            MalformedError: another number of openings than of runs.
            SequenceError: before reveal, or a second time.
            CheatingError: an opening is not what was committed to or not the number, or a run is unequal: the form is not
                zero, or R says so falsely. Either way it is R's (never the prover's of a third party) to answer for.
            InconclusiveError: the only failures are runs whose mask is near a rounding boundary.
        """
        _check_count("openings", len(openings), len(self._queries))
        if self._commitments is None:
            raise SequenceError("openings before the numbers were revealed")
        if self._concluded:
            raise SequenceError("the zero check is over")
        self._concluded = True
        unequal = [run for run, opening in enumerate(openings) if opening is None]
        for run, opening in enumerate(openings):
            if opening is None:
                continue
            digest = _commitment(self._context, run, opening).digest
            if not hmac.compare_digest(digest, self._commitments[run].digest):
                raise CheatingError(f"run {run} opens to something else than was committed to", run=run)
            if opening.value != self._mus[run]:
                raise CheatingError(f"run {run} opens to another number than the verifier's", run=run)
        certain = [run for run in unequal if not self._doubtful[run]]
        if certain:
            raise CheatingError(f"runs {certain} of {len(openings)} are not zero", runs=tuple(certain))
        if unequal:
            raise InconclusiveError(f"runs {unequal} failed near a rounding boundary: repeat", runs=tuple(unequal))


class ZeroCheckResponder:
    """R's side. It reveals one bit a run, charged by the caller whatever the answer is."""

    def __init__(self, sk: SecretKey, rng: Rng, context: bytes = b"") -> None:
        self._sk, self._rng, self._context = sk, rng, context
        self._queries: tuple[ZeroQuery, ...] | None = None
        self._secrets: list[ZeroOpening] = []
        self._mus: tuple[int, ...] | None = None

    def commit(self, queries: Sequence[ZeroQuery]) -> list[ZeroCommitment]:
        """Decrypt every run and commit; all runs are checked before any is decrypted.

        Raises:
            LimitError, MalformedError: no run or too many, wrong lengths, residues out of range, ``x1 = 0``.
            SequenceError: other queries than the first time.
        """
        if not 1 <= len(queries) <= MAX_RUNS:
            raise LimitError(f"{len(queries)} runs, from 1 to {MAX_RUNS}")
        if self._queries is not None and self._queries != tuple(queries):
            raise SequenceError("other queries after the commitments were sent")
        if self._queries is None:
            checked = [query.residues(self._sk.params) for query in queries]
            self._secrets = [ZeroOpening(decrypt_first(self._sk, *pair), self._rng.bytes(_SALT)) for pair in checked]
            self._queries = tuple(queries)
        return [_commitment(self._context, run, secret) for run, secret in enumerate(self._secrets)]

    def open(self, mus: Sequence[int]) -> list[ZeroOpening | None]:
        """The opening of each run that decrypts to the verifier's number, None for the others.

        Raises:
            MalformedError: another number of values than of runs, or a value outside [0, t).
            SequenceError: before commit, or with other values than the first time.
        """
        if self._queries is None:
            raise SequenceError("numbers before the commitments")
        _check_count("numbers", len(mus), len(self._secrets))
        t = self._sk.params.plain_modulus
        if any(not 0 <= mu < t for mu in mus):
            raise MalformedError(f"a number is outside [0, {t})")
        if self._mus is not None and self._mus != tuple(mus):
            raise SequenceError("other numbers after the openings were sent")
        self._mus = tuple(mus)
        return [secret if secret.value == mu else None for secret, mu in zip(self._secrets, mus, strict=True)]


def decrypt_first(sk: SecretKey, x0: Residues, x1: Residues) -> int:
    """Coefficient 0 of the decryption: ``round(t (x0 + (x1 s)_0) / q) mod t``, from (L,) and (L, N)."""
    params = sk.params
    limbs = [(int(x0[limb]) + product_head(x1[limb], sk.s)) % prime for limb, prime in enumerate(params.primes)]
    q, t = params.modulus, params.plain_modulus
    return (2 * t * compose(limbs, params) + q) // (2 * q) % t

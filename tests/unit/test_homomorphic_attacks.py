"""Attacks on what goes to the holder of the key, and what she can learn from time.

Each attack is first run on the careless variant, where it works, and then on the library, where it does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from core.crypto.homomorphic import (
    PARAMS,
    Ints,
    PublicKey,
    Residues,
    SecretKey,
    add,
    combine,
    compose,
    decrypt,
    dot_weights,
    encrypt_symmetric,
    expand_uniform,
    generate_keys,
    linear_form,
    mask_for_decryption,
    multiply_poly,
    public_key,
    rerandomise,
    scale_up,
    sub,
)
from core.crypto.zero_check import LinearForm, ZeroCheckResponder, ZeroCheckVerifier
from core.errors import CheatingError
from tests.seeded import SeededRng
from tests.timing import is_same_time

T, N, L, Q = PARAMS.plain_modulus, PARAMS.degree, PARAMS.limbs, PARAMS.modulus


@pytest.fixture(scope="module")
def sk() -> SecretKey:
    return generate_keys(PARAMS, b"attacks", SeededRng("attacks"))


@pytest.fixture(scope="module")
def pk(sk: SecretKey) -> PublicKey:
    return public_key(sk)


def constant(value: int) -> Residues:
    """A polynomial modulo q whose coefficient 0 is ``value``, shape (L, N)."""
    out = np.zeros((L, N), dtype=np.uint64)
    out[:, 0] = [value % prime for prime in PARAMS.primes]
    return out


def phase(sk: SecretKey, c0: Residues, c1: Residues) -> int:
    """Coefficient 0 of c0 + c1 s, which the holder of the key can compute at will."""
    total = add(c0, multiply_poly(c1, sk.s))
    return compose([int(v) for v in total[:, 0]])


def noise_of(value: int) -> int:
    """What is left of a phase when its multiple of q/t is taken out, centred."""
    nearest = (2 * T * value + Q) // (2 * Q)
    rest = (value - (2 * nearest * Q + T) // (2 * T)) % Q
    return rest - Q if rest > Q // 2 else rest


PLANT = 1 << 78


def planted(sk: SecretKey) -> tuple[Residues, Residues]:
    """The requester publishes A with an offset of 2^78 in the phase of one coefficient; it decrypts as if it were honest."""
    plain = np.random.default_rng(1).integers(0, 256, (2, N))
    c0, c1 = encrypt_symmetric(sk, b"A", plain, SeededRng(1)), expand_uniform(PARAMS, b"A", 2)
    c0[0] = add(c0[0], constant(PLANT))
    assert np.array_equal(decrypt(sk, c0, c1), plain)
    return c0, c1


def test_planted_offsets_do_not_reveal_the_multipliers(sk: SecretKey, pk: PublicKey) -> None:
    """Fails when the mask is a plaintext modulo t with noise flooding on top, instead of uniform modulo q."""
    c0, c1 = planted(sk)
    secret = 12345
    matrix = np.array([[secret, 678]], dtype=np.int64)
    k0, k1 = combine(matrix, c0), combine(matrix, c1)

    # Careless: a uniform plaintext hides the result, and a flood of 2^70 the honest noise, which is below 2^45.
    share = np.random.default_rng(2).integers(0, T, N)
    flood = int(np.random.default_rng(3).integers(0, 1 << 62)) << 8
    careless = add(add(k0[0], scale_up(share)), constant(flood))
    assert round(noise_of(phase(sk, careless, k1[0])) / PLANT) == secret

    guesses = []
    for run in range(6):
        m0, m1, shares = mask_for_decryption(pk, k0, k1, SeededRng(run))
        want = sum(int(w) * int(p) for w, p in zip(matrix[0], decrypt(sk, c0, c1)[:, 0], strict=True))
        assert (int(decrypt(sk, m0, m1)[0, 0]) - int(shares[0, 0])) % T == want % T
        guesses.append(round(noise_of(phase(sk, m0[0], m1[0])) / PLANT))
    assert secret not in guesses
    assert len(set(guesses)) == 6
    assert max(abs(guess) for guess in guesses) > 1 << 30


def test_planted_offsets_do_not_reveal_the_weights_of_a_zero_check(sk: SecretKey, pk: PublicKey) -> None:
    """The same for a query of one number; x0 alone is masked, and that is all there is."""
    c0, c1 = planted(sk)
    weights = np.zeros((2, N), dtype=np.int64)
    weights[0, 0] = 4321
    head, tail = linear_form(c0, c1, weights)
    bare = np.zeros((L, N), dtype=np.uint64)
    bare[:, 0] = head
    assert round(noise_of(phase(sk, bare, tail)) / PLANT) == 4321
    guesses = []
    for run in range(4):
        query = ZeroCheckVerifier(pk, [LinearForm(head, tail, 0)], SeededRng(run)).queries()[0]
        x0, x1 = query.residues()
        bare[:, 0] = x0
        guesses.append(round(noise_of(phase(sk, bare, x1)) / PLANT))
    assert 4321 not in guesses
    assert len(set(guesses)) == 4


def solve_mod(matrix: list[list[int]], right: list[int], prime: int) -> list[int]:
    """Gauss-Jordan over the prime field."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        pivot = next(r for r in range(i, len(rows)) if rows[r][i] % prime)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        inverse = pow(rows[i][i], -1, prime)
        rows[i] = [value * inverse % prime for value in rows[i]]
        for r in range(len(rows)):
            if r != i:
                rows[r] = [(a - rows[r][i] * b) % prime for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[-1] for row in rows]


def test_weights_cannot_be_solved_for_from_c1(sk: SecretKey, pk: PublicKey) -> None:
    """Fails when no encryption of zero is added: c1 of the result is then a known matrix times the weights."""
    count, prime = 4, PARAMS.primes[0]
    secret = [3, 5, 7, 11]
    c1 = expand_uniform(PARAMS, b"A", count)
    k1 = combine(np.array([secret], dtype=np.int64), c1)
    system = [[int(c1[m, 0, n]) for m in range(count)] for n in range(count)]
    assert solve_mod(system, [int(v) for v in k1[0, 0, :count]], prime) == secret
    _, m1, _ = mask_for_decryption(pk, np.zeros_like(k1), k1, SeededRng(1))
    assert solve_mod(system, [int(v) for v in m1[0, 0, :count]], prime) != secret
    difference = sub(m1, k1)
    assert len({int(v) for v in difference[0, 0]}) == N  # not a small error alone: a u + e1 is spread over everything


def test_a_mask_covers_every_coefficient_and_limb_and_is_never_used_twice(pk: PublicKey) -> None:
    nothing = expand_uniform(PARAMS, b"A", 2)
    rng = SeededRng(5)
    first, second = rerandomise(pk, nothing, nothing, rng), rerandomise(pk, nothing, nothing, rng)
    for array in (first[2], second[2]):
        assert all(len(np.unique(array[i, limb])) == N for i in range(2) for limb in range(L))
        high = np.mean(array > np.uint64(PARAMS.primes[0] // 2))
        assert 0.49 < high < 0.51
    assert not np.any(np.all(first[2] == second[2], axis=-1))
    assert not np.array_equal(first[2][0], first[2][1])


def test_the_holder_of_the_key_has_no_say_in_a(sk: SecretKey, pk: PublicKey) -> None:
    """With a = 1 she would read u, and so every multiplier. A public key is b and nothing else; a follows from the context."""
    read = PublicKey.from_bytes(pk.to_bytes(), b"attacks")
    assert np.array_equal(read.a_spectra, pk.a_spectra)
    assert len(pk.to_bytes()) == PARAMS.poly_bytes
    elsewhere = PublicKey.from_bytes(pk.to_bytes(), b"another task")
    assert not np.array_equal(elsewhere.a_spectra, pk.a_spectra)
    with pytest.raises(AttributeError):
        elsewhere.a_context = b"attacks"  # type: ignore[misc]


@pytest.mark.parametrize("fraction", [(1, 2), (1, 3), (2, 3)])
def test_a_fraction_planted_in_a_ciphertext_does_not_make_a_lie_pass(
    sk: SecretKey, pk: PublicKey, fraction: tuple[int, int]
) -> None:
    """The plaintext a/b may pass as a b^-1 mod t in some runs; no other value ever does, and no integer near it."""
    plain = np.zeros((1, N), dtype=np.int64)
    c1 = expand_uniform(PARAMS, b"A", 1)
    c0 = encrypt_symmetric(sk, b"A", plain, SeededRng(3))
    c0[0] = add(c0[0], constant(fraction[0] * Q // (fraction[1] * T)))
    numbers = np.random.default_rng(4)
    for claim in (0, 1):
        for attempt in range(3):
            weights = np.zeros((1, N), dtype=np.int64)
            weights[0, 0] = numbers.integers(1 << 20, T)
            form = LinearForm(*linear_form(c0, c1, weights), const=(-claim * int(weights[0, 0])) % T)
            v, r = ZeroCheckVerifier(pk, [form], SeededRng(attempt)), ZeroCheckResponder(sk, SeededRng(attempt))
            with pytest.raises(CheatingError):
                v.conclude(r.open(v.reveal(r.commit(v.queries()))))


def test_zero_weights_take_as_long_as_any_weights() -> None:
    """Fails when zero is skipped, or treated apart because a library refuses it."""
    residues = expand_uniform(PARAMS, b"A", 16)
    zeros, ones = np.zeros((16, 16), dtype=np.int64), np.ones((16, 16), dtype=np.int64)

    def products(matrix: Ints) -> Callable[[], object]:
        return lambda: combine(matrix, residues)

    def vector(poly: Ints) -> Callable[[], object]:
        return lambda: multiply_poly(residues[0], dot_weights(poly))

    assert is_same_time(products(zeros), products(ones))
    assert is_same_time(vector(np.zeros(N, np.int64)), vector(np.full(N, T - 1)))
    assert not combine(zeros, residues).any()

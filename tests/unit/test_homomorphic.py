"""The RLWE module against its references, against SEAL, and against its own noise bounds."""

from __future__ import annotations

import numpy as np
import pytest

from core.crypto.homomorphic import (
    PARAMS,
    HeParams,
    Ints,
    PublicKey,
    RowsBuilder,
    SealTwin,
    SecretKey,
    add,
    add_plain,
    check_residues,
    combine,
    combine_reference,
    compose,
    decrypt,
    dot_weights,
    encrypt_public,
    encrypt_symmetric,
    expand_uniform,
    generate_keys,
    linear_form,
    linear_forms,
    mask_for_decryption,
    measure_noise,
    multiply_poly,
    multiply_poly_reference,
    negate,
    number_mask,
    pack,
    public_key,
    rerandomise,
    scale_down,
    scale_up,
    sub,
    unpack,
)
from core.crypto.homomorphic.rounding import scale_down_exact
from core.crypto.homomorphic.seal import security_bits_allowed, security_bits_used
from core.errors import LimitError, MalformedError
from tests.seeded import SeededRng

T, N, L = PARAMS.plain_modulus, PARAMS.degree, PARAMS.limbs
CONTEXT = b"chain/task"


@pytest.fixture(scope="module")
def sk() -> SecretKey:
    return generate_keys(PARAMS, CONTEXT, SeededRng("key error"))


@pytest.fixture(scope="module")
def pk(sk: SecretKey) -> PublicKey:
    return public_key(sk)


@pytest.fixture(scope="module")
def twin(sk: SecretKey) -> SealTwin:
    return SealTwin(sk.s)


@pytest.fixture
def numbers(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def plaintexts(numbers: np.random.Generator, count: int) -> Ints:
    return numbers.integers(0, T, (count, N))


def test_parameters_fit_128_bit_security_as_seal_counts() -> None:
    assert security_bits_used() == 200
    assert security_bits_allowed() == 218
    assert all(prime % (2 * N) == 1 for prime in (*PARAMS.primes, PARAMS.special_prime))
    assert len({*PARAMS.primes, PARAMS.special_prime}) == 4
    assert PARAMS.modulus.bit_length() == 150
    assert PARAMS.poly_bytes == 153_600


def test_noise_bounds_leave_room() -> None:
    combined = PARAMS.noise_after_products(PARAMS.noise_fresh, 256)
    vector = PARAMS.noise_after_poly(combined)
    assert PARAMS.noise_fresh.bit_length() <= 5
    assert combined.bit_length() <= 45
    assert vector.bit_length() <= 90
    assert PARAMS.noise_limit >= 1 << 116


def test_symmetric_round_trip_and_noise(sk: SecretKey, numbers: np.random.Generator) -> None:
    plain = plaintexts(numbers, 2)
    c0 = encrypt_symmetric(sk, b"A", plain, SeededRng(1))
    c1 = expand_uniform(PARAMS, b"A", 2)
    assert np.array_equal(decrypt(sk, c0, c1), plain)
    assert 5 < measure_noise(sk, c0, c1) <= PARAMS.noise_fresh


def test_seal_decrypts_ours_and_we_decrypt_seals(sk: SecretKey, twin: SealTwin, numbers: np.random.Generator) -> None:
    plain = plaintexts(numbers, 2)
    c0, c1 = encrypt_symmetric(sk, b"A", plain, SeededRng(2)), expand_uniform(PARAMS, b"A", 2)
    assert np.array_equal(twin.decrypt(c0[0], c1[0]), plain[0])
    theirs = twin.encrypt(plain[1])
    assert np.array_equal(decrypt(sk, theirs[0][None], theirs[1][None])[0], plain[1])
    assert twin.noise_budget(c0[0], c1[0]) in range(109, 115)


def test_seal_multiplies_like_ours(sk: SecretKey, twin: SealTwin, numbers: np.random.Generator) -> None:
    plain, poly = plaintexts(numbers, 1), plaintexts(numbers, 1)[0]
    c0, c1 = encrypt_symmetric(sk, b"A", plain, SeededRng(3)), expand_uniform(PARAMS, b"A", 1)
    theirs = twin.multiply_plain(c0[0], c1[0], poly)
    assert np.array_equal(theirs[0], multiply_poly(c0[0], poly))
    assert np.array_equal(theirs[1], multiply_poly(c1[0], poly))


def test_seal_decrypts_the_public_encryption(
    sk: SecretKey, pk: PublicKey, twin: SealTwin, numbers: np.random.Generator
) -> None:
    plain = plaintexts(numbers, 1)
    c0, c1 = encrypt_public(pk, plain, b"s" * 32)
    assert np.array_equal(twin.decrypt(c0[0], c1[0]), plain[0])


def test_public_encryption_repeats_bit_for_bit(sk: SecretKey, pk: PublicKey, numbers: np.random.Generator) -> None:
    plain = plaintexts(numbers, 2)
    first, second = encrypt_public(pk, plain, b"s" * 32), encrypt_public(pk, plain, b"s" * 32)
    other = encrypt_public(pk, plain, b"t" * 32)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[1], other[1])
    assert np.array_equal(decrypt(sk, *first), plain)
    assert measure_noise(sk, *first) <= PARAMS.noise_fresh_public


def test_combination_decrypts_to_the_matrix_product_within_its_bound(sk: SecretKey, numbers: np.random.Generator) -> None:
    plain, matrix = plaintexts(numbers, 6), numbers.integers(0, T, (2, 6))
    c0, c1 = encrypt_symmetric(sk, b"A", plain, SeededRng(4)), expand_uniform(PARAMS, b"A", 6)
    k0, k1 = combine(matrix, c0), combine(matrix, c1)
    want = (matrix.astype(object) @ plain.astype(object) % T).astype(np.int64)
    assert np.array_equal(decrypt(sk, k0, k1), want)
    bound = PARAMS.noise_after_products(PARAMS.noise_fresh, 6)
    assert measure_noise(sk, k0, k1) <= bound
    poly = plaintexts(numbers, 1)[0]
    noise = measure_noise(sk, multiply_poly(k0[:1], poly), multiply_poly(k1[:1], poly))
    assert bound < noise <= PARAMS.noise_after_poly(bound)


@pytest.mark.parametrize(("rows", "terms"), [(1, 1), (3, 7), (2, 2049)])
def test_combine_equals_its_reference_on_extremes(rows: int, terms: int, numbers: np.random.Generator) -> None:
    small = HeParams(16, T, PARAMS.primes, PARAMS.special_prime)
    primes = np.array(PARAMS.primes, dtype=np.uint64)[None, :, None]
    residues = numbers.integers(0, primes, (terms, L, 16), dtype=np.uint64)
    residues[:, :, :4] = primes - np.uint64(1)
    matrix = numbers.integers(0, T, (rows, terms))
    for filler in (None, 0, T // 2, T // 2 + 1, T - 1):
        if filler is not None:
            matrix[:] = filler
        assert np.array_equal(combine(matrix, residues, small), combine_reference(matrix, residues, small))


def test_multiply_poly_equals_its_reference(numbers: np.random.Generator) -> None:
    residues = expand_uniform(PARAMS, b"any", 1)
    for poly in (plaintexts(numbers, 1)[0], np.zeros(N, np.int64), np.full(N, T // 2), np.full(N, T - 1)):
        assert np.array_equal(multiply_poly(residues[0], poly), multiply_poly_reference(residues[0], poly))
    worst = np.broadcast_to(np.array(PARAMS.primes, np.uint64)[:, None] - np.uint64(1), (L, N)).copy()
    assert np.array_equal(multiply_poly(worst, np.full(N, T // 2)), multiply_poly_reference(worst, np.full(N, T // 2)))


def test_multiply_poly_broadcasts(numbers: np.random.Generator) -> None:
    residues, polys = expand_uniform(PARAMS, b"any", 2), plaintexts(numbers, 3)
    out = multiply_poly(residues[:, None], polys[None])
    assert out.shape == (2, 3, L, N)
    assert np.array_equal(out[1, 2], multiply_poly(residues[1], polys[2]))


def test_coefficient_zero_is_the_weighted_sum(sk: SecretKey, numbers: np.random.Generator) -> None:
    plain, weights = plaintexts(numbers, 2), numbers.integers(-T, T, (2, N))
    c0, c1 = encrypt_symmetric(sk, b"A", plain, SeededRng(5)), expand_uniform(PARAMS, b"A", 2)
    head, tail = linear_form(c0, c1, weights)
    products = multiply_poly(c0, dot_weights(weights))
    assert np.array_equal(head, add(products[0], products[1])[:, 0])
    whole = np.zeros((1, L, N), dtype=np.uint64)
    whole[0, :, 0] = head
    want = int((plain.astype(object) * weights.astype(object)).sum()) % T
    assert decrypt(sk, whole, tail[None])[0, 0] == want
    heads, tails = linear_forms(c0, c1, np.stack([np.zeros_like(weights), weights]))
    assert np.array_equal(heads[1], head)
    assert np.array_equal(tails[1], tail)
    assert not heads[0].any()
    assert not tails[0].any()


def test_addition_and_plaintexts(sk: SecretKey, numbers: np.random.Generator) -> None:
    plain = plaintexts(numbers, 2)
    c0, c1 = encrypt_symmetric(sk, b"A", plain, SeededRng(6)), expand_uniform(PARAMS, b"A", 2)
    total = add(c0[:1], c0[1:]), add(c1[:1], c1[1:])
    assert np.array_equal(decrypt(sk, *total)[0], (plain[0] + plain[1]) % T)
    assert np.array_equal(sub(total[0], c0[1:]), c0[:1])
    assert np.array_equal(add(c0, negate(c0)), np.zeros_like(c0))
    assert np.array_equal(decrypt(sk, add_plain(c0, plain), c1), 2 * plain % T)
    for result in (*total, negate(c0), sub(c0, c1)):
        check_residues(result)


def test_scaling_is_exact_even_at_rounding_boundaries(numbers: np.random.Generator) -> None:
    q = PARAMS.modulus
    plain = plaintexts(numbers, 1)[0]
    plain[:4] = 0, 1, T - 1, T // 2
    up = scale_up(plain)
    for i in range(64):
        assert compose([int(v) for v in up[:, i]]) == (2 * q * int(plain[i]) + T) // (2 * T)
    values = [(2 * k + 1) * q // (2 * T) + step for k in (0, 1, 5, T - 1, T // 3) for step in (-1, 0, 1, 2)] + [0, q - 1]
    array = np.zeros((L, N), dtype=np.uint64)
    for i, value in enumerate(values):
        array[:, i] = [value % prime for prime in PARAMS.primes]
    down = scale_down(array)
    for i, value in enumerate(values):
        exact = (2 * T * value + q) // (2 * q) % T
        assert down[i] == exact == scale_down_exact(value)


def test_wire_form_round_trip_and_size() -> None:
    residues = expand_uniform(PARAMS, b"wire", 2)
    data = pack(residues)
    assert len(data) == 2 * PARAMS.poly_bytes
    assert np.array_equal(unpack(data, 2), residues)


def test_wire_form_refuses_what_is_not_canonical() -> None:
    data = pack(expand_uniform(PARAMS, b"wire", 1))
    with pytest.raises(MalformedError, match="truncated"):
        unpack(data[:-1], 1)
    with pytest.raises(LimitError):
        unpack(data + b"\0", 1)
    with pytest.raises(LimitError):
        unpack(data, 0)
    with pytest.raises(MalformedError, match="not below its prime"):
        unpack(b"\xff" * len(data), 1)
    for limb, prime in enumerate(PARAMS.primes):
        planted = bytearray(data)
        offset = (limb * N * 50) // 8
        value = int.from_bytes(planted[offset : offset + 25], "little") >> 50 << 50 | prime
        planted[offset : offset + 25] = value.to_bytes(25, "little")
        with pytest.raises(MalformedError, match=f"prime {prime}"):
            unpack(bytes(planted), 1)
    with pytest.raises(MalformedError):
        pack(np.full((L, N), PARAMS.primes[0], dtype=np.uint64))


def test_decrypt_refuses_peers_nonsense(sk: SecretKey) -> None:
    fine = expand_uniform(PARAMS, b"x", 1)
    with pytest.raises(MalformedError, match="c1 is zero"):
        decrypt(sk, fine, np.zeros_like(fine))
    with pytest.raises(MalformedError, match="not below"):
        decrypt(sk, fine, np.full_like(fine, PARAMS.primes[2]))
    with pytest.raises(MalformedError):
        decrypt(sk, fine, fine[:, :2])
    with pytest.raises(MalformedError):
        decrypt(sk, fine[0], fine[0])
    with pytest.raises(MalformedError, match="c1 is zero"):
        SealTwin(sk.s).decrypt(fine[0], np.zeros_like(fine[0]))


def test_encryption_refuses_values_outside_the_plaintext_space(sk: SecretKey, pk: PublicKey) -> None:
    for bad in (-1, T):
        plain = np.full((1, N), bad, dtype=np.int64)
        with pytest.raises(MalformedError):
            encrypt_symmetric(sk, b"A", plain, SeededRng(1))
        with pytest.raises(MalformedError):
            encrypt_public(pk, plain, b"s" * 32)
    with pytest.raises(MalformedError, match="seed"):
        encrypt_public(pk, np.zeros((1, N), np.int64), b"short")


def test_public_polynomial_depends_on_context_and_index_only() -> None:
    block = expand_uniform(PARAMS, b"ctx", 3)
    check_residues(block)
    assert np.array_equal(expand_uniform(PARAMS, b"ctx", 1, start=2)[0], block[2])
    assert len({row.tobytes() for row in block}) == 3
    assert not np.array_equal(expand_uniform(PARAMS, b"ctx2", 1)[0], block[0])


def test_rejection_sampling_replaces_candidates_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.crypto.homomorphic.sampling import Stream, uniform

    small = HeParams(16, T, PARAMS.primes, PARAMS.special_prime)
    high = np.uint64((1 << 50) - 1)
    served = [np.zeros(3 * 16, np.uint64), np.array([high]), np.array([np.uint64(7)]), np.array([np.uint64(9)])]
    served[0][[5, 20]] = high
    stream = Stream(b"label", b"key", 0, small)
    monkeypatch.setattr(stream, "words", lambda count: served.pop(0))
    out = uniform(stream, small)
    assert out[0, 5] == 7
    assert out[1, 4] == 9
    assert int(out.sum()) == 16


def test_keys_on_disk_and_on_the_wire(sk: SecretKey, pk: PublicKey, numbers: np.random.Generator) -> None:
    again = SecretKey.from_bytes(sk.to_bytes())
    plain = plaintexts(numbers, 1)
    c0, c1 = encrypt_public(PublicKey.from_bytes(pk.to_bytes(), CONTEXT), plain, b"s" * 32)
    assert np.array_equal(decrypt(again, c0, c1), plain)
    assert ", s=" not in repr(sk)
    with pytest.raises(MalformedError):
        SecretKey.from_bytes(sk.to_bytes()[:-1])
    with pytest.raises(MalformedError, match="zero"):
        PublicKey.from_bytes(bytes(PARAMS.poly_bytes), CONTEXT)


def test_secrets_are_ternary_and_differ() -> None:
    first, second = (generate_keys(PARAMS, CONTEXT, SeededRng(1)) for _ in range(2))
    assert set(np.unique(first.s)) == {-1, 0, 1}
    assert not np.array_equal(first.s, second.s)


def test_masks_are_uniform_modulo_every_prime(pk: PublicKey) -> None:
    """Chi square over 128 equal ranges and over residues modulo 127, limb by limb: within five standard deviations.

    Independent and uniform modulo every prime is uniform modulo q (Chinese remainders).
    """
    nothing = np.zeros((6, L, N), dtype=np.uint64)
    nothing[:, 0, 0] = 1
    masked, _, masks = rerandomise(pk, nothing, nothing, SeededRng("uniform"))
    for array in (masks, masked):
        for limb, prime in enumerate(PARAMS.primes):
            values = array[:, limb].reshape(-1)
            for bins, groups in ((values // np.uint64(prime // 128 + 1), 128), (values % np.uint64(127), 127)):
                counts = np.bincount(bins.astype(np.int64), minlength=groups)
                expected = values.size / groups
                chi = float((np.square(counts - expected) / expected).sum())
                assert abs(chi - (groups - 1)) < 5 * (2 * (groups - 1)) ** 0.5, (limb, groups, chi)
    pairs = np.corrcoef((masks[:, :, :] / np.array(PARAMS.primes)[None, :, None]).swapaxes(0, 1).reshape(L, -1))
    assert np.abs(pairs - np.eye(L)).max() < 0.03


def test_masked_decryption_is_plaintext_plus_share(sk: SecretKey, pk: PublicKey, numbers: np.random.Generator) -> None:
    plain = plaintexts(numbers, 2)
    c0, c1 = encrypt_symmetric(sk, b"A", plain, SeededRng(7)), expand_uniform(PARAMS, b"A", 2)
    m0, m1, share = mask_for_decryption(pk, c0, c1, SeededRng(8))
    assert np.array_equal((decrypt(sk, m0, m1) - share) % T, plain)
    _, _, mask = rerandomise(pk, c0, c1, SeededRng(8))
    exact = [scale_down_exact(compose([int(v) for v in mask[0, :, i]])) for i in range(32)]
    assert exact == share[0, :32].tolist()


def test_rows_are_combined_and_dotted_as_the_slow_twins_do() -> None:
    """Extreme residues and weights among random ones, so that every partial sum comes as near to 2^53 as it can."""
    rng = np.random.default_rng(31)
    polynomials = expand_uniform(PARAMS, b"rows", 7)
    polynomials[0] = (np.array(PARAMS.primes, dtype=np.uint64) - np.uint64(1))[:, None]
    builder = RowsBuilder(7)
    for polynomial in polynomials:
        builder.add(polynomial)
    rows = builder.rows()
    assert np.array_equal(rows.residues(), polynomials)
    matrix = rng.integers(0, T, (3, 7))
    matrix[0] = [T // 2, T // 2 + 1, 0, 1, T - 1, 1 << 17, (1 << 16) + 1]
    assert np.array_equal(rows.combine(matrix), combine_reference(matrix, polynomials))
    vectors = rng.integers(0, T, (3, N))
    vectors[0], vectors[1, ::2] = T // 2, T // 2 + 1
    found = rows.dots(vectors)
    for k, vector in enumerate(vectors):
        for m in (0, 1, 6):
            assert np.array_equal(found[k, m], linear_form(polynomials[m : m + 1], polynomials[m : m + 1], vector[None])[0])


def test_rows_say_what_does_not_fit() -> None:
    with pytest.raises(LimitError):
        RowsBuilder(2049)
    with pytest.raises(MalformedError):
        RowsBuilder(2).rows()
    builder = RowsBuilder(1)
    builder.add(expand_uniform(PARAMS, b"one", 1)[0])
    with pytest.raises(MalformedError):
        builder.rows().combine(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(MalformedError):
        builder.rows().dots(np.zeros((2, 2), dtype=np.int64))


def test_a_mask_drawn_beforehand_is_a_rerandomisation() -> None:
    """``number_mask`` on a number and ``rerandomise`` on the whole ciphertext agree, from the same coins."""
    sk = generate_keys(PARAMS, b"number mask", SeededRng(3))
    pk = public_key(sk)
    c0 = np.zeros((1, L, N), dtype=np.uint64)
    c1 = expand_uniform(PARAMS, b"number", 1)
    c0[0, :, 0] = c1[0, :, 5]
    out0, out1, mask = rerandomise(pk, c0, c1, SeededRng(4))
    made = number_mask(pk, SeededRng(4))
    assert np.array_equal(made.mask, mask[0, :, 0])
    assert np.array_equal(add(c0[0, :, :1], made.head[:, None])[:, 0], out0[0, :, 0])
    assert np.array_equal(add(c1[0], made.tail), out1[0])

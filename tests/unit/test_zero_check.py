"""The zero check: it passes between honest parties, and nothing false passes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from core.codec import decode, encode
from core.crypto.homomorphic import (
    PARAMS,
    Ints,
    PublicKey,
    Residues,
    SecretKey,
    add,
    decrypt,
    encrypt_symmetric,
    expand_uniform,
    generate_keys,
    linear_form,
    pack,
    public_key,
)
from core.crypto.zero_check import (
    MAX_RUNS,
    LinearForm,
    ZeroCheckResponder,
    ZeroCheckVerifier,
    ZeroCommitment,
    ZeroOpening,
    ZeroQuery,
    decrypt_first,
)
from core.errors import CheatingError, InconclusiveError, LimitError, MalformedError, SequenceError
from core.ports import Rng
from tests.seeded import SeededRng

T, N, L, Q = PARAMS.plain_modulus, PARAMS.degree, PARAMS.limbs, PARAMS.modulus
CONTEXT = b"transcript"


@dataclasses.dataclass
class World:
    sk: SecretKey
    pk: PublicKey
    plain: Ints
    c0: Residues
    c1: Residues

    def form(self, weights: Ints, off_by: int = 0) -> LinearForm:
        value = int((self.plain.astype(object) * weights.astype(object)).sum()) % T
        return LinearForm(*linear_form(self.c0, self.c1, weights), const=(off_by - value) % T)

    def run(self, forms: list[LinearForm], rng: Rng) -> None:
        v = ZeroCheckVerifier(self.pk, forms, rng, CONTEXT)
        r = ZeroCheckResponder(self.sk, rng, CONTEXT)
        v.conclude(r.open(v.reveal(r.commit(v.queries()))))


@pytest.fixture(scope="module")
def world() -> World:
    sk = generate_keys(PARAMS, b"zero check", SeededRng("zero"))
    plain = np.random.default_rng(5).integers(0, 256, (2, N))
    return World(sk, public_key(sk), plain, encrypt_symmetric(sk, b"A", plain, SeededRng(1)), expand_uniform(PARAMS, b"A", 2))


@pytest.fixture(scope="module")
def forms(world: World) -> list[LinearForm]:
    numbers = np.random.default_rng(6)
    return [world.form(numbers.integers(0, T, (2, N))) for _ in range(2)]


def test_a_true_statement_passes(world: World, forms: list[LinearForm]) -> None:
    world.run(forms, SeededRng(2))


@pytest.mark.parametrize("off_by", [1, -1, T // 2, 2**20])
def test_a_value_wrong_by_anything_is_caught(world: World, forms: list[LinearForm], off_by: int) -> None:
    for run in range(2):
        wrong = list(forms)
        wrong[run] = dataclasses.replace(forms[run], const=(forms[run].const + off_by) % T)
        with pytest.raises(CheatingError, match=rf"runs \[{run}\] of 2"):
            world.run(wrong, SeededRng(3))


def test_responder_who_searches_for_the_number_cannot_open_it(world: World, forms: list[LinearForm]) -> None:
    """Fails when commitments are not checked: R answers mu itself after it was revealed."""
    wrong = [dataclasses.replace(forms[0], const=(forms[0].const + 1) % T)]
    v, r = ZeroCheckVerifier(world.pk, wrong, SeededRng(4), CONTEXT), ZeroCheckResponder(world.sk, SeededRng(5), CONTEXT)
    mus = v.reveal(r.commit(v.queries()))
    with pytest.raises(CheatingError, match="something else"):
        v.conclude([ZeroOpening(mus[0], bytes(32))])


def test_responder_who_opens_another_number_is_caught(world: World, forms: list[LinearForm]) -> None:
    wrong = [dataclasses.replace(forms[0], const=(forms[0].const + 1) % T)]
    v, r = ZeroCheckVerifier(world.pk, wrong, SeededRng(4), CONTEXT), ZeroCheckResponder(world.sk, SeededRng(5), CONTEXT)
    mus = v.reveal(r.commit(v.queries()))
    with pytest.raises(CheatingError, match="another number"):
        v.conclude(r.open([(mus[0] + 1) % T]))


def test_commitment_of_one_run_does_not_serve_another_run_or_context(world: World, forms: list[LinearForm]) -> None:
    v, r = ZeroCheckVerifier(world.pk, forms, SeededRng(6), CONTEXT), ZeroCheckResponder(world.sk, SeededRng(7), CONTEXT)
    commitments = r.commit(v.queries())
    openings = r.open(v.reveal(commitments[::-1]))
    with pytest.raises(CheatingError):
        v.conclude(openings)
    v, r = ZeroCheckVerifier(world.pk, forms, SeededRng(6), CONTEXT), ZeroCheckResponder(world.sk, SeededRng(7), b"other")
    openings = r.open(v.reveal(r.commit(v.queries())))
    with pytest.raises(CheatingError):
        v.conclude(openings)


def test_responder_opens_nothing_but_equality(world: World) -> None:
    """V asks for a plaintext: it learns one bit, that its guess was wrong, and never the number."""
    label = np.zeros((2, N), dtype=np.int64)
    label[0, 3] = 1
    form = LinearForm(*linear_form(world.c0, world.c1, label), const=0)
    v, r = ZeroCheckVerifier(world.pk, [form], SeededRng(8), CONTEXT), ZeroCheckResponder(world.sk, SeededRng(9), CONTEXT)
    mus = v.reveal(r.commit(v.queries()))
    assert r.open(mus) == [None]
    with pytest.raises(SequenceError):
        r.open([(mus[0] + int(world.plain[0, 3])) % T])


def test_guessing_again_needs_another_charged_run(world: World, forms: list[LinearForm]) -> None:
    v, r = ZeroCheckVerifier(world.pk, forms, SeededRng(10), CONTEXT), ZeroCheckResponder(world.sk, SeededRng(11), CONTEXT)
    commitments = r.commit(v.queries())
    assert r.commit(v.queries()) == commitments
    with pytest.raises(SequenceError):
        r.commit(v.queries()[:1])
    with pytest.raises(SequenceError):
        v.conclude([None, None])
    mus = v.reveal(commitments)
    assert v.reveal(commitments) == mus
    with pytest.raises(SequenceError):
        v.reveal([ZeroCommitment(bytes(32))] * 2)
    v.conclude(r.open(mus))
    with pytest.raises(SequenceError):
        v.conclude(r.open(mus))
    with pytest.raises(SequenceError):
        ZeroCheckResponder(world.sk, SeededRng(1)).open(mus)


def test_counts_and_ranges_are_checked_in_every_state(world: World, forms: list[LinearForm]) -> None:
    with pytest.raises(LimitError):
        ZeroCheckVerifier(world.pk, [], SeededRng(1))
    with pytest.raises(LimitError):
        ZeroCheckVerifier(world.pk, forms[:1] * (MAX_RUNS + 1), SeededRng(1))
    v, r = ZeroCheckVerifier(world.pk, forms, SeededRng(12), CONTEXT), ZeroCheckResponder(world.sk, SeededRng(13), CONTEXT)
    queries = v.queries()
    with pytest.raises(LimitError):
        r.commit([])
    with pytest.raises(LimitError):
        r.commit(queries[:1] * (MAX_RUNS + 1))
    commitments = r.commit(queries)
    with pytest.raises(MalformedError):
        v.reveal(commitments[:1])
    mus = v.reveal(commitments)
    for bad in ([mus[0]], [mus[0], -1], [mus[0], T]):
        with pytest.raises(MalformedError):
            r.open(bad)
    with pytest.raises(MalformedError):
        v.conclude(r.open(mus)[:1])
    v.conclude(r.open(mus))


def test_malformed_queries_are_refused_before_anything_is_decrypted(world: World, forms: list[LinearForm]) -> None:
    good = ZeroCheckVerifier(world.pk, forms[:1], SeededRng(14), CONTEXT).queries()[0]
    high = PARAMS.primes[0].to_bytes(8, "big") + good.x0[8:]
    bad = [
        dataclasses.replace(good, x0=good.x0[:-1]),
        dataclasses.replace(good, x0=high),
        dataclasses.replace(good, x1=good.x1[:-1]),
        dataclasses.replace(good, x1=good.x1 + b"\0"),
        dataclasses.replace(good, x1=b"\xff" * len(good.x1)),
        dataclasses.replace(good, x1=bytes(len(good.x1))),
    ]
    r = ZeroCheckResponder(world.sk, SeededRng(15), CONTEXT)
    for query in bad:
        with pytest.raises((MalformedError, LimitError)):
            r.commit([good, query])
    assert len(r.commit([good])) == 1


def test_messages_have_one_encoding(world: World, forms: list[LinearForm]) -> None:
    query = ZeroCheckVerifier(world.pk, forms[:1], SeededRng(16)).queries()[0]
    assert decode(ZeroQuery, encode(query)) == query
    assert len(encode(query)) < 160_000
    with pytest.raises(LimitError):
        decode(ZeroQuery, b"\xff" * 12)
    with pytest.raises(MalformedError):
        decode(ZeroQuery, encode(query)[:-1])


def test_first_coefficient_equals_the_whole_decryption(world: World) -> None:
    poly = expand_uniform(PARAMS, b"pair", 2)
    x0 = np.zeros((1, L, N), dtype=np.uint64)
    x0[0, :, 0] = poly[0, :, 0]
    assert decrypt_first(world.sk, poly[0, :, 0], poly[1]) == decrypt(world.sk, x0, poly[1:])[0, 0]


def test_failure_near_a_rounding_boundary_blames_nobody(
    world: World, forms: list[LinearForm], monkeypatch: pytest.MonkeyPatch
) -> None:
    boundary = Q // (2 * T)
    for distance, error in ((1 << 89, InconclusiveError), (-(1 << 89), InconclusiveError), (1 << 91, CheatingError)):
        mask = np.zeros((L, N), dtype=np.uint64)
        mask[:, 0] = [(boundary + distance) % prime for prime in PARAMS.primes]
        monkeypatch.setattr("core.crypto.homomorphic.encryption.uniform", lambda stream, params, mask=mask: mask)
        v = ZeroCheckVerifier(world.pk, forms[:1], SeededRng(17), CONTEXT)
        r = ZeroCheckResponder(world.sk, SeededRng(18), CONTEXT)
        openings = r.open(v.reveal(r.commit(v.queries())))
        assert openings != [None]
        with pytest.raises(error):
            v.conclude([None])


def test_a_certain_failure_outweighs_an_inconclusive_one(
    world: World, forms: list[LinearForm], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = np.zeros((L, N), dtype=np.uint64), np.zeros((L, N), dtype=np.uint64)
    near[:, 0] = [Q // (2 * T) % prime for prime in PARAMS.primes]
    masks = [near, far]
    monkeypatch.setattr("core.crypto.homomorphic.encryption.uniform", lambda stream, params: masks.pop(0))
    v = ZeroCheckVerifier(world.pk, forms, SeededRng(19), CONTEXT)
    r = ZeroCheckResponder(world.sk, SeededRng(20), CONTEXT)
    v.reveal(r.commit(v.queries()))
    with pytest.raises(CheatingError, match=r"runs \[1\]"):
        v.conclude([None, None])


def test_runs_share_nothing(world: World, forms: list[LinearForm]) -> None:
    """Two runs of the very same form: another u, e1 and mask in each, hence other bytes and other numbers."""
    v = ZeroCheckVerifier(world.pk, [forms[0]] * 3, SeededRng(21), CONTEXT)
    assert len({query.x0 for query in v.queries()}) == len({query.x1 for query in v.queries()}) == 3
    r = ZeroCheckResponder(world.sk, SeededRng(22), CONTEXT)
    commitments = r.commit(v.queries())
    assert len(set(v.reveal(commitments))) == len(set(commitments)) == 3


def test_planted_noise_does_not_reach_what_the_responder_sees(world: World) -> None:
    """R plants q/4t at the coefficient of a weight: without a mask modulo q she would read the weight's parity.

    The number that R decrypts is uniform whether she planted or not; and without the mask the plant shows.
    """
    plant = np.zeros((2, L, N), dtype=np.uint64)
    plant[0, :, 0] = [(Q // (2 * T)) % prime for prime in PARAMS.primes]
    planted = add(world.c0, plant)
    zero = np.zeros((2, N), dtype=np.int64)
    seen_bare, seen_masked = [], []
    for weight in (2, 3):
        weights = zero.copy()
        weights[0, 0] = weight
        head, tail = linear_form(planted, world.c1, weights)
        bare = (decrypt_first(world.sk, head, tail) - weight * int(world.plain[0, 0])) % T
        seen_bare.append(bare)
        masked = [
            decrypt_first(
                world.sk, *ZeroCheckVerifier(world.pk, [LinearForm(head, tail, 0)], SeededRng(i)).queries()[0].residues()
            )
            for i in range(4)
        ]
        seen_masked.append(masked)
    assert seen_bare in ([1, 1], [1, 2])  # weight q/2t is read as weight/2: the plant reveals the weight
    assert all(len(set(masked)) == 4 for masked in seen_masked)
    assert min(min(masked) for masked in seen_masked) > 2**20


def test_query_hides_the_form_even_from_the_secret_key(world: World, forms: list[LinearForm]) -> None:
    """Fails when x1 is not re-randomised: R solves for the weights from c1, which she published."""
    v = ZeroCheckVerifier(world.pk, forms[:1], SeededRng(23))
    assert v.queries()[0].x1 != pack(forms[0].c1)

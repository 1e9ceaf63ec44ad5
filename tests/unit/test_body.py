"""The body behind Vm, its commitment, its opening, and the encrypted test set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.chain.transaction import Activation
from core.codec import decode, encode
from core.crypto.homomorphic import PARAMS, add, decrypt, pack, unpack
from core.errors import CryptoError, InputError, LimitError, MalformedError
from core.ids import AccountId
from core.verification.body import Blame, ModelOpening, VmBody, commitment, decrypt_body, judge_opening, make_body, read_body
from core.verification.field import T, unpack_values
from core.verification.scored_model import ModelShape
from core.verification.task import check_spec
from core.verification.test_set import EncryptedTestSet, TestSet
from tests.models import random_model
from tests.seeded import SeededRng
from tests.verification import CHAIN, POOL, small_world

WORLD = small_world()
FAMILY = WORLD.task.family
MODEL = random_model(FAMILY.dims, FAMILY.activation, 4)
BODY, OPENING = make_body(WORLD.pk, MODEL, SeededRng("body"))


def halves(body: bytes) -> np.ndarray:
    return unpack(decode(VmBody, body).ciphertexts, 2)


def with_ciphertexts(residues: np.ndarray) -> bytes:
    return encode(replace(decode(VmBody, BODY), ciphertexts=pack(residues)))


def test_the_requester_reads_the_model() -> None:
    model = decrypt_body(WORLD.sk, BODY, FAMILY)
    assert (model.encode() == MODEL.encode()).all()
    assert model.shape == MODEL.shape


def test_commitment_covers_pool_task_and_salt() -> None:
    """Attack 8, first part. Defence: pool, task and chain in c_W's preimage."""
    base = commitment(CHAIN, WORLD.task.task_id, POOL, BODY)
    assert base == commitment(CHAIN, WORLD.task.task_id, POOL, BODY)
    again, _ = make_body(WORLD.pk, MODEL, SeededRng("other coins"))
    others = [
        commitment(CHAIN, WORLD.task.task_id, AccountId(b"\x23" * 32), BODY),
        commitment(CHAIN, WORLD.task.task_id, POOL, again),
    ]
    assert base not in others


def test_honest_opening_of_a_good_body_convicts_the_requester() -> None:
    """Attack 6, R's false "malformed". Defence: the opening makes the body again."""
    assert judge_opening(WORLD.pk, BODY, FAMILY, encode(OPENING)) is Blame.REQUESTER


def test_a_body_half_way_between_messages_convicts_nobody_but_the_pool() -> None:
    """Attack 6. Defence: the requester encrypts again what she decrypted and compares. Without the comparison she answers with
    one of the two neighbours, and no one can tell which: tried by hand, the decryption then succeeds."""
    residues = halves(BODY)
    half = np.zeros((PARAMS.limbs, PARAMS.degree), dtype=np.uint64)
    quotient = PARAMS.modulus // (2 * T)
    half[:, 0] = [quotient % prime for prime in PARAMS.primes]
    residues[0] = add(residues[0], half)
    body = with_ciphertexts(residues)
    with pytest.raises(MalformedError, match="not the encryption"):
        decrypt_body(WORLD.sk, body, FAMILY)
    assert judge_opening(WORLD.pk, body, FAMILY, encode(OPENING)) is Blame.POOL
    assert judge_opening(WORLD.pk, body, FAMILY, None) is Blame.POOL


def test_noise_planted_in_a_body_is_found() -> None:
    """A body with one more unit of noise decrypts to the same model, and is refused all the same: R's answer carries no bit
    about her key."""
    residues = halves(BODY)
    one = np.zeros((PARAMS.limbs, PARAMS.degree), dtype=np.uint64)
    one[:, 5] = 1
    residues[0] = add(residues[0], one)
    assert (decrypt(WORLD.sk, residues[:1], residues[1:])[0] == decrypt(WORLD.sk, halves(BODY)[:1], halves(BODY)[1:])[0]).all()
    with pytest.raises(MalformedError, match="not the encryption"):
        decrypt_body(WORLD.sk, with_ciphertexts(residues), FAMILY)


def test_an_out_of_range_model_that_is_well_encrypted_is_the_pools_fault() -> None:
    """Attack 6. Defence: ranges checked by the requester and by the judges of an opening."""
    from core.verification.body import _encrypt
    from core.verification.field import pack_values

    values = unpack_values(OPENING.values, (FAMILY.parameters,))
    values[0] = 512
    opening = ModelOpening(OPENING.seed, pack_values(values))
    body = encode(replace(decode(VmBody, BODY), ciphertexts=_encrypt(WORLD.pk, MODEL.shape, opening)))
    with pytest.raises(MalformedError, match="beyond"):
        decrypt_body(WORLD.sk, body, FAMILY)
    assert judge_opening(WORLD.pk, body, FAMILY, encode(opening)) is Blame.POOL


@pytest.mark.parametrize(
    "opening", [b"", b"\x00" * 40, encode(replace(OPENING, seed=bytes(32))), encode(OPENING) + b"\x00", bytes(33 << 20)]
)
def test_wrong_openings_convict_the_pool(opening: bytes) -> None:
    assert judge_opening(WORLD.pk, BODY, FAMILY, opening) is Blame.POOL


@pytest.mark.parametrize("cut", [0, 1, 60, 1000])
def test_truncated_bodies_are_refused(cut: int) -> None:
    """Attack 12, bodies."""
    with pytest.raises(InputError):
        read_body(BODY[:cut], FAMILY)
    with pytest.raises(InputError):
        read_body(BODY + b"\x00", FAMILY)


def test_bodies_of_another_family_or_without_hiding_are_refused() -> None:
    decoded = decode(VmBody, BODY)
    other = replace(decoded, shape=ModelShape((8, 4, 3), Activation.RELU, 10, (6,)))
    with pytest.raises(MalformedError, match="task asks for"):
        read_body(encode(other), FAMILY)
    residues = halves(BODY)
    residues[1] = 0
    with pytest.raises(MalformedError, match="hides nothing"):
        read_body(with_ciphertexts(residues), FAMILY)


def test_residues_out_of_range_are_refused() -> None:
    """Attack 12. Defence: unpack checks every residue against its prime."""
    data = bytearray(decode(VmBody, BODY).ciphertexts)
    data[:25] = b"\xff" * 25
    with pytest.raises(MalformedError, match="prime"):
        read_body(encode(replace(decode(VmBody, BODY), ciphertexts=bytes(data))), FAMILY)


def test_the_test_set_decrypts_to_its_rows() -> None:
    rows = WORLD.plain.rows()
    for c0, c1, wanted in (
        (WORLD.encrypted.features0, WORLD.encrypted.features1, rows[:8]),
        (WORLD.encrypted.labels0, WORLD.encrypted.labels1, rows[8:]),
    ):
        for row, plain in enumerate(wanted):
            got = WORLD.task.gather(decrypt(WORLD.sk, c0[:, row], c1[:, row]))
            assert (got == plain % T).all()


def test_blobs_are_checked_against_the_task() -> None:
    bad = bytearray(WORLD.blobs[3])
    bad[0] ^= 1
    with pytest.raises(CryptoError, match="blob 3"):
        EncryptedTestSet.load(WORLD.task, [*WORLD.blobs[:3], bytes(bad), *WORLD.blobs[4:]])
    with pytest.raises(MalformedError):
        EncryptedTestSet.load(WORLD.task, WORLD.blobs[:-1])


def test_specs_are_checked_at_publication() -> None:
    spec = WORLD.task.spec
    check_spec(spec)
    for bad in (
        replace(spec, samples=0), replace(spec, classes=1), replace(spec, features=600), replace(spec, weight_bits=16),
    ):  # fmt: skip
        with pytest.raises(LimitError):
            check_spec(bad)
    with pytest.raises(MalformedError):
        check_spec(replace(spec, test_blobs=spec.test_blobs[:-1]))
    with pytest.raises(MalformedError):
        check_spec(replace(spec, test_blobs=spec.test_blobs[::-1]))


def test_labels_are_checked() -> None:
    for labels in (np.array([0, 3]), np.array([-1, 0]), np.array([0])):
        with pytest.raises(MalformedError):
            TestSet(np.zeros((2, 4), np.int8), labels, 3)

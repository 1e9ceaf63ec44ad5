"""What is refused before aggregation, aggregation against numpy, and sealing of updates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.codec import decode, encode
from core.crypto.sealing import SealingKeyPair, Suite
from core.errors import CheatingError, ConfigError, CryptoError, MalformedError, PoflError
from pool.flower import aggregation, keys, wire
from pool.flower.aggregation import aggregate, strategy_for, tolerated
from pool.flower.checks import Accepted, cap_weights, check_update, refuse_outliers
from pool.flower.jobs import ALGORITHMS
from pool.flower.wire import Answer, Outcome, Update, vector_from_bytes, vector_to_bytes
from tests.seeded import SeededRng

MINER = b"\x02" + b"m" * 32


def update(vector: np.ndarray, examples: int = 10, loss: float = 0.5) -> Update:
    return Update(examples, loss, 1, 1, 1, vector_to_bytes(vector))


def accepted(number: int, vector: np.ndarray, examples: int = 10) -> Accepted:
    return Accepted(bytes([number]) * 33, vector, examples, examples, 0.5)


def crowd(count: int, seed: int = 1, size: int = 12) -> list[Accepted]:
    rng = np.random.default_rng(seed)
    return [accepted(i, rng.normal(size=size), int(rng.integers(5, 50))) for i in range(count)]


def test_a_good_update_is_accepted() -> None:
    result = check_update(MINER, update(np.ones(4)), 4, 10)
    np.testing.assert_array_equal(result.vector, np.ones(4))
    assert (result.examples, result.weight) == (10, 10)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (update(np.array([1, np.nan, 1, 1])), CheatingError, "1 of 4 values are not finite"),
        (update(np.array([1, np.inf, 1, 1])), CheatingError, "not finite"),
        (update(np.ones(4), loss=float("nan")), CheatingError, "loss"),
        (update(np.ones(4), examples=11), CheatingError, "11 examples, registered 10"),
        (update(np.ones(4), examples=0), CheatingError, "0 examples"),
        (update(np.full(4, 1e7)), CheatingError, "ceiling"),
        (update(np.ones(5)), MalformedError, "20 bytes of weights"),
        (update(np.ones(0)), MalformedError, "0 bytes of weights"),
        (replace(update(np.ones(4)), version=3), MalformedError, "version 3"),
        (replace(update(np.ones(4)), version=2), MalformedError, "16 bytes of half floats"),
    ],
)
def test_a_bad_update_is_refused_with_its_reason(bad: Update, error: type[PoflError], words: str) -> None:
    with pytest.raises(error, match=words):
        check_update(MINER, bad, 4, 10)


def test_an_update_far_longer_than_the_others_is_dropped() -> None:
    honest = [accepted(i, np.ones(4)) for i in range(3)]
    kept, refused = refuse_outliers([*honest, accepted(9, np.full(4, 11.0))])
    assert kept == honest
    assert list(refused) == [bytes([9]) * 33]
    kept, refused = refuse_outliers([*honest, accepted(9, np.full(4, 9.0))])
    assert len(kept) == 4
    assert not refused


def test_weights_are_capped_at_four_medians_of_the_others() -> None:
    pair = cap_weights([accepted(1, np.ones(1), 10), accepted(2, np.ones(1), 10_000)])
    assert [u.weight for u in pair] == [10, 40]
    capped = cap_weights([accepted(1, np.ones(1), 10), accepted(2, np.ones(1), 10), accepted(3, np.ones(1), 10_000)])
    assert [u.weight for u in capped] == [10, 10, 40]
    assert [u.examples for u in capped] == [10, 10, 10_000]
    assert cap_weights([]) == []


def test_mean_is_weighted_by_examples() -> None:
    for name in ("fedavg", "fedsgd"):
        updates = crowd(5)
        expected = np.average([u.vector for u in updates], axis=0, weights=[u.weight for u in updates])
        np.testing.assert_allclose(aggregate(name, 1, updates), expected)


def test_median_and_trimmed_mean() -> None:
    updates = crowd(5)
    stack = np.sort(np.stack([u.vector for u in updates]), axis=0)
    np.testing.assert_allclose(aggregate("median", 1, updates), stack[2])
    np.testing.assert_allclose(aggregate("trimmed_mean", 1, updates), stack[1:4].mean(axis=0))
    three = crowd(3)
    middle = np.median(np.stack([u.vector for u in three]), axis=0)
    np.testing.assert_allclose(aggregate("trimmed_mean", 1, three), middle)


def krum_order(updates: list[Accepted], hostile: int) -> list[int]:
    """Blanchard et al. 2017: sum of squared distances to the n - f - 2 nearest others."""
    count = len(updates)
    distance = np.array([[np.sum((a.vector - b.vector) ** 2) for b in updates] for a in updates])
    scores = [np.sort(np.delete(distance[i], i))[: max(1, count - hostile - 2)].sum() for i in range(count)]
    return list(np.argsort(scores))


def test_krum_takes_the_update_nearest_to_its_neighbours() -> None:
    updates = crowd(7)
    best = krum_order(updates, tolerated("krum", 7))[0]
    np.testing.assert_allclose(aggregate("krum", 1, updates), updates[best].vector)


def test_multikrum_averages_the_best() -> None:
    updates = crowd(7)
    hostile = tolerated("multikrum", 7)
    best = [updates[i] for i in krum_order(updates, hostile)[: 7 - hostile - 2]]
    expected = np.average([u.vector for u in best], axis=0, weights=[u.weight for u in best])
    np.testing.assert_allclose(aggregate("multikrum", 1, updates), expected)


def test_bulyan_is_near_the_median_of_the_honest() -> None:
    honest = [accepted(i, np.ones(6) + 0.01 * i) for i in range(6)]
    result = aggregate("bulyan", 1, [*honest, accepted(9, np.full(6, 50.0))])
    assert np.abs(result - 1.025).max() < 0.05


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multikrum", "bulyan"])
def test_robust_rules_survive_one_liar_and_the_mean_does_not(name: str) -> None:
    honest = [accepted(i, np.ones(6) + 0.01 * i) for i in range(6)]
    everyone = [*honest, accepted(9, np.full(6, -100.0))]
    assert np.abs(aggregate(name, 1, everyone) - 1.025).max() < 0.1
    assert np.abs(aggregate("fedavg", 1, everyone) - 1.025).max() > 5


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_rule_works_with_any_number_of_updates(name: str, count: int) -> None:
    result = aggregate(name, 1, crowd(count))
    assert result.shape == (12,)
    assert np.isfinite(result).all()


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="geometric"):
        strategy_for("geometric", 3)


class TestSealing:
    pool = SealingKeyPair.generate(SeededRng("pool"))
    private, public = keys.new_node_key()
    signer = keys.private_key_of(private)
    info = wire.context(7, "a" * 64, public, 3)
    plain = update(np.arange(4.0))

    def answer(self) -> Answer:
        return wire.seal_update(self.plain, self.pool.public_key, self.info, self.signer)

    def test_opens_for_the_pool(self) -> None:
        answer = decode(Answer, encode(self.answer()))
        assert wire.open_update(answer, self.pool.private_key, self.info, self.public) == self.plain
        assert self.plain.vector not in answer.sealed

    @pytest.mark.parametrize(
        "other",
        [
            wire.context(8, "a" * 64, public, 3),
            wire.context(7, "b" * 64, public, 3),
            wire.context(7, "a" * 64, public, 4),
            wire.context(7, "a" * 64, keys.new_node_key()[1], 3),
        ],
        ids=["run", "instruction", "round", "miner"],
    )
    def test_is_not_replayed_elsewhere(self, other: bytes) -> None:
        with pytest.raises(CryptoError):
            wire.open_update(self.answer(), self.pool.private_key, other, self.public)

    def test_a_replay_signed_anew_still_does_not_open(self) -> None:
        stolen, other = self.answer(), wire.context(7, "a" * 64, self.public, 4)
        forged = replace(stolen, signature=keys.sign(self.signer, wire.ANSWER_LABEL + other + stolen.sealed))
        with pytest.raises(CryptoError, match="does not open"):
            wire.open_update(forged, self.pool.private_key, other, self.public)

    def test_another_miner_cannot_speak_for_this_one(self) -> None:
        thief = keys.private_key_of(keys.new_node_key()[0])
        forged = wire.seal_update(self.plain, self.pool.public_key, self.info, thief)
        with pytest.raises(CryptoError, match="not by node key"):
            wire.open_update(forged, self.pool.private_key, self.info, self.public)

    def test_changed_bytes_are_noticed(self) -> None:
        answer = self.answer()
        changed = replace(answer, sealed=answer.sealed[:-1] + bytes([answer.sealed[-1] ^ 1]))
        with pytest.raises(CryptoError):
            wire.open_update(changed, self.pool.private_key, self.info, self.public)

    def test_a_swapped_suite_does_not_open(self) -> None:
        """A hybrid pool's key has an X25519 half: what is sealed to that alone, signed and in place, is no answer."""
        hybrid = SealingKeyPair.generate(SeededRng("hybrid"), Suite.HYBRID)
        good = wire.seal_update(self.plain, hybrid.public_key, self.info, self.signer, Suite.HYBRID)
        assert wire.open_update(good, hybrid.private_key, self.info, self.public, Suite.HYBRID) == self.plain
        assert len(good.sealed) - len(encode(self.plain)) == Suite.HYBRID.overhead
        weak = wire.seal_update(self.plain, hybrid.public_key[-32:], self.info, self.signer)
        for answer, suite in ((weak, Suite.HYBRID), (weak, Suite.X25519), (good, Suite.X25519)):
            with pytest.raises(CryptoError, match="does not open"):
                wire.open_update(answer, hybrid.private_key, self.info, self.public, suite)

    def test_an_empty_answer_is_no_update(self) -> None:
        with pytest.raises(CryptoError):
            wire.open_update(Answer(Outcome.TRAINED, "", b"", b""), self.pool.private_key, self.info, self.public)


def test_node_keys_are_compressed_points() -> None:
    private, public = keys.new_node_key()
    assert len(public) == 33
    assert keys.public_bytes_of(keys.private_key_of(private)) == public
    assert keys.node_public_pem(public).startswith(b"-----BEGIN PUBLIC KEY-----")
    for bad in (b"", public[:-1], b"\x05" + public[1:], b"\x02" + b"\xff" * 32):
        with pytest.raises(MalformedError):
            keys.node_public_pem(bad)
    with pytest.raises(MalformedError):
        keys.private_key_of(b"no key")


def test_vectors_keep_float32() -> None:
    values = np.array([0.1, -2.5, 1e-20])
    back = vector_from_bytes(vector_to_bytes(values), 3)
    np.testing.assert_array_equal(back, values.astype(np.float32))


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FBFFFFF, 0xFF800001], ids=hex)
def test_a_signalling_nan_is_read_without_a_warning_and_refused(bits: int) -> None:
    """A peer chooses the bits; the processor flags an invalid operation when such a NaN is widened."""
    data = bits.to_bytes(4, "little") + bytes(4)
    assert np.isnan(vector_from_bytes(data, 2)[0])
    with pytest.raises(CheatingError):
        check_update(MINER, Update(10, 0.5, 1, 1, 1, data), 2, 10)


@pytest.mark.parametrize("algorithm", ["fedavg", "median", "trimmed_mean", "krum"])
def test_a_large_model_is_aggregated_in_parts_with_the_same_result(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = crowd(5, size=1001)
    whole = aggregate(algorithm, 1, updates)
    monkeypatch.setattr(aggregation, "PART", 100)
    np.testing.assert_array_equal(aggregate(algorithm, 1, updates), whole)

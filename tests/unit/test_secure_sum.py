"""core.crypto.masking, secure_sum and its collector: exact sums, drop-outs at every step, and both sides lying."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.codec import decode, encode
from core.crypto import masking, secure_messages, secure_sum
from core.crypto.masking import CLIP, MAX_WEIGHT, SHARE_SIZE, mask, restore_secret, share_secret, threshold
from core.crypto.sealing import Suite
from core.crypto.secure_collector import Collector
from core.crypto.secure_messages import Advert, Consent, Dealt, Reveal, Sum
from core.crypto.secure_sum import Participant
from core.errors import CheatingError, CryptoError, InputError, LimitError, MalformedError, PoflError, SequenceError
from core.market.contributions import counted
from core.ports import SystemRng
from pool.flower import keys
from tests.seeded import SeededRng

SESSION = b"run 7, round 3"
SIZE = 5
NODES = sorted((keys.new_node_key() for _ in range(16)), key=lambda pair: pair[1])


def signer(private: bytes) -> Callable[[bytes], bytes]:
    key = keys.private_key_of(private)
    return lambda message: keys.sign(key, message)


def participant(number: int, session: bytes = SESSION, suite: Suite = Suite.X25519, least: int = 3) -> Participant:
    private, name = NODES[number]
    return Participant(session, name, suite, weigh, signer(private), keys.verify, SystemRng(), least)


def weigh(examples: Sequence[int]) -> list[int]:
    return counted(examples, 4)


def vector(number: int) -> np.ndarray:
    return np.array([number + 1.0, -0.5, 0.25 * number, 0.0, 1e-3])


@dataclass
class World:
    """One session in memory. ``gone``: participant -> the step that it does not answer any more (1 to 5). ``deals``:
    participant -> what it deals instead."""

    count: int = 4
    suite: Suite = Suite.X25519
    gone: dict[int, int] = field(default_factory=dict)
    examples: dict[int, int] = field(default_factory=dict)
    deals: dict[int, Callable[[Dealt], Dealt]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.people = {i: participant(i, suite=self.suite) for i in range(self.count)}
        self.collector = Collector(SESSION, SIZE, self.suite, weigh, keys.verify)

    def here(self, step: int) -> list[int]:
        return [i for i in self.people if self.gone.get(i, 9) > step]

    def adverts(self) -> tuple[Advert, ...]:
        for i in self.here(1):
            self.collector.take_advert(NODES[i][1], self.people[i].advert(self.examples.get(i, 10)), 1 << 30)
        return self.collector.close_roster()

    def at(self, i: int) -> int:
        return self.collector.index(NODES[i][1])

    def shares(self) -> dict[int, tuple[bytes, ...]]:
        roster = self.adverts()
        for i in self.here(2):
            dealt = self.people[i].share(roster)
            self.collector.take_shares(self.at(i), self.deals[i](dealt) if i in self.deals else dealt)
        return self.collector.inboxes()

    def masked(self) -> tuple[int, ...]:
        inboxes = self.shares()
        for i in self.here(3):
            masked = self.people[i].mask(vector(i), inboxes[self.at(i)])
            self.collector.take_masked(self.at(i), masked.vector.tobytes(), masked.held)
        return self.collector.close_masked()

    def consents(self) -> tuple[Consent, ...]:
        survivors = self.masked()
        for i in self.here(4):
            self.collector.take_consent(self.at(i), self.people[i].consent(survivors))
        return self.collector.consents()

    def run(self) -> Sum:
        consents = self.consents()
        for i in self.here(5):
            self.collector.take_reveal(self.at(i), self.people[i].reveal(consents))
        return self.collector.total()


# Sums


@pytest.mark.parametrize("suite", Suite, ids=lambda suite: suite.label)
def test_the_manager_gets_the_weighted_mean(suite: Suite) -> None:
    counts = {0: 10, 1: 20, 2: 7, 3: 13}
    total = World(suite=suite, examples=counts).run()
    expected = np.average([vector(i) for i in range(4)], axis=0, weights=list(counts.values()))
    np.testing.assert_allclose(total.mean, expected, atol=2**-24)
    assert total.weight == 50
    assert set(total.survivors) == {NODES[i][1] for i in range(4)}


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [4, 6])
def test_who_drops_out_at_any_step_costs_nobody_else(step: int, count: int) -> None:
    """A third may go. Who sent its masked vector before it went counts; the masks of who did not are taken off."""
    gone = dict.fromkeys(range(count // 3), step)
    total = World(count, gone=gone).run()
    rest = [i for i in range(count) if i not in gone or step > 3]
    assert set(total.survivors) == {NODES[i][1] for i in rest}
    np.testing.assert_allclose(total.mean, np.mean([vector(i) for i in rest], axis=0), atol=2**-24)


def test_one_drops_out_after_each_step() -> None:
    total = World(9, gone={0: 2, 1: 3, 2: 5}).run()
    np.testing.assert_allclose(total.mean, np.mean([vector(i) for i in range(2, 9)], axis=0), atol=2**-24)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_too_few_end_it_before_anything_is_unmasked(step: int) -> None:
    with pytest.raises(LimitError, match=r"need"):
        World(4, gone={0: step, 1: step}).run()


def test_too_few_at_the_end_restore_nothing() -> None:
    with pytest.raises(CryptoError, match="cannot be restored, with 3 good shares"):
        World(4, gone={0: 5, 1: 5}).run()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-70, 70), st.integers(1, MAX_WEIGHT)), min_size=1, max_size=8))
def test_sums_of_fixed_point_are_exact(terms: list[tuple[float, int]]) -> None:
    total, integers = np.zeros(1, dtype=np.uint64), 0
    for value, weight in terms:
        term = masking.to_fixed_point(np.array([value]), weight, SeededRng(1))
        total += term
        integers += int(term.view(np.int64)[0])
    assert int(total.view(np.int64)[0]) == integers
    weight = sum(weight for _, weight in terms)
    exact = sum(Fraction(max(-CLIP, min(CLIP, value))) * weight for value, weight in terms) / weight
    assert abs(Fraction(float(masking.from_fixed_point(total, weight)[0])) - exact) <= Fraction(1, 2**24)


@pytest.mark.parametrize(("own", "others"), [(501, 500), (5_999, 6_000), (7, 1 << 20)])
def test_a_sum_does_not_hold_a_short_step_modulo_the_others_weights(own: int, others: int) -> None:
    """With terms that are multiples of their weights, the sum modulo ``others`` is the one that differs, to the last bit."""
    rng = np.random.default_rng(3)
    steps = [rng.normal(0, 5e-6, 4_096).astype(np.float32).astype(np.float64) for _ in range(5)]
    terms = [masking.to_fixed_point(s, others if i else own, SeededRng(i)) for i, s in enumerate(steps)]
    total = sum(terms[1:], terms[0])
    rest = total.view(np.int64) % others
    wanted = (np.rint(steps[0] * 2**24).astype(np.int64) * own) % others
    distance = np.minimum((rest - wanted) % others, (wanted - rest) % others)
    # Uniform on a circle: a quarter of its length on average.
    assert abs(float(distance.mean()) / (others / 4) - 1) < 0.1
    mean = masking.from_fixed_point(total, own + 4 * others)
    np.testing.assert_allclose(mean, np.average(steps, axis=0, weights=[own, *[others] * 4]), atol=2**-24)


def test_the_largest_sum_does_not_wrap() -> None:
    one = masking.to_fixed_point(np.array([CLIP, -CLIP]), MAX_WEIGHT, SeededRng(1))
    total = np.zeros(2, dtype=np.uint64)
    for _ in range(masking.MAX_PARTICIPANTS):
        total += one
    np.testing.assert_allclose(masking.from_fixed_point(total, 64 * MAX_WEIGHT), [CLIP, -CLIP], rtol=0, atol=2**-24)


def test_what_cannot_be_summed_is_said() -> None:
    for bad, weight, words in (
        (np.nan, 1, "not finite"),
        (np.inf, 1, "not finite"),
        (1.0, 0, "weight"),
        (1.0, MAX_WEIGHT + 1, "weight"),
    ):
        with pytest.raises(InputError, match=words):
            masking.to_fixed_point(np.array([bad]), weight, SeededRng(1))


def test_weights_follow_from_the_adverts_by_the_rule() -> None:
    """As pay does: at most four times the median of the others' examples."""
    total = World(4, examples={0: 10, 1: 12, 2: 14, 3: 100_000}).run()
    np.testing.assert_allclose(
        total.mean, np.average([vector(i) for i in range(4)], axis=0, weights=[10, 12, 14, 48]), atol=1e-6
    )
    assert total.weight == 84


# Masks


def test_a_masked_vector_alone_is_uniform() -> None:
    """Two very different vectors, each alone: bytes of what the manager gets pass a chi-square test for uniformity, and it
    is not the fixed-point vector under any one of the masks that the manager could know."""
    for value in (0.0, 60.0):
        world = World(4)
        world.collector._size = 4096
        inboxes = world.shares()
        masked = world.people[0].mask(np.full(4096, value), inboxes[world.at(0)])
        counts = np.bincount(np.frombuffer(masked.vector.tobytes(), np.uint8), minlength=256)
        chi_square = float(((counts - 128.0) ** 2 / 128.0).sum())
        # 255 degrees of freedom: less than 60 or more than 450 comes once in 10**12 times; a constant's bytes give millions.
        assert 60 < chi_square < 450


def test_without_the_self_mask_pairs_of_masks_hide_it_and_without_them_the_self_mask_does() -> None:
    """The manager needs both the seed and all pairs' keys; a survivor's mask key is never revealed."""
    world = World(4)
    world.run()
    me = world.people[0]
    shown = [r.shares[world.at(0)] for r in world.collector._reveals.values()]
    assert shown
    held_of_key = {person._held[world.at(0)].mask_key for person in world.people.values() if world.at(0) in person._held}
    assert held_of_key.isdisjoint(shown)
    # Taking the restored self mask off one vector leaves what is still uniform modulo 2^64, not the vector.
    digest = secure_messages.roster_digest(SESSION, world.collector.roster)
    alone = world.collector._masked[world.at(0)] - mask(secure_messages.self_key(me._seed, digest), SIZE)
    plain = masking.to_fixed_point(vector(0), 10, SeededRng(1))
    # But for the dither, of at most half a weight in either.
    assert not np.any(np.abs((alone - plain).view(np.int64)) <= 10)


def test_a_guess_of_the_vector_cannot_be_checked_by_its_dither() -> None:
    guess = np.zeros(64)
    one, other = (masking.to_fixed_point(guess, 1 << 20, SeededRng(seed)) for seed in (1, 2))
    assert np.any(one != other)


def test_masks_are_of_one_session_and_one_roster() -> None:
    first, second = World(4), World(4)
    first.masked()
    second.masked()
    assert not np.any(first.collector._masked[0] == second.collector._masked[0])
    key, context = bytes(range(32)), b"roster"
    assert mask(key, 3).tolist() != mask(secure_messages.self_key(key, context), 3).tolist()


def test_both_sides_of_a_pair_have_one_mask_and_small_order_is_refused() -> None:
    rng = SeededRng("pair")
    ann, bob = rng.bytes(32), rng.bytes(32)
    there = masking.pair_key(ann, secure_messages.mask_public(bob), b"x")
    assert there == masking.pair_key(bob, secure_messages.mask_public(ann), b"x")
    assert there != masking.pair_key(bob, secure_messages.mask_public(ann), b"y")
    with pytest.raises(CryptoError, match="no common key"):
        masking.pair_key(ann, bytes(32), b"x")


# Shamir


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.data())
def test_a_threshold_restores_a_secret(secret: bytes, count: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(1, count))
    shares = share_secret(secret, needed, count, SeededRng(str(secret)))
    chosen = data.draw(st.permutations(range(count)))[:needed]
    assert restore_secret({i + 1: shares[i] for i in chosen}) == secret
    if needed > 1:
        with_fewer = {i + 1: shares[i] for i in chosen[1:]}
        with contextlib.suppress(CryptoError):
            assert restore_secret(with_fewer) != secret


def test_the_field_is_of_a_prime() -> None:
    import sympy

    assert sympy.isprime(masking.PRIME)


def test_fewer_shares_fit_every_secret() -> None:
    """Perfect secrecy: to any two shares of three there is a polynomial for whatever the secret would be."""
    shares = share_secret(b"s" * 32, 3, 5, SystemRng())
    p = masking.PRIME
    for guess in (b"\0" * 32, b"s" * 32, b"\xff" * 32):
        points = {0: int.from_bytes(guess, "big"), 1: int.from_bytes(shares[0], "big"), 2: int.from_bytes(shares[1], "big")}
        third = 0
        for x, y in points.items():
            above, below = 1, 1
            for other in points:
                if other != x:
                    above, below = above * (3 - other) % p, below * (x - other) % p
            third = (third + y * above * pow(below, -1, p)) % p
        assert restore_secret({1: shares[0], 2: shares[1], 3: third.to_bytes(SHARE_SIZE, "big")}) == guess


@pytest.mark.parametrize("bad", [{1: b"short"}, {0: bytes(33)}, {1: b"\xff" * 33}])
def test_what_is_no_share_is_refused(bad: dict[int, bytes]) -> None:
    with pytest.raises(MalformedError):
        restore_secret(bad)


# A manager that lies


def test_a_roster_that_is_not_what_was_advertised_is_refused() -> None:
    world = World(4)
    roster = world.adverts()
    stranger = participant(8).advert(10)
    forged = replace(roster[1], mask_key=stranger.mask_key)
    renamed = replace(stranger, name=roster[1].name)
    other_session = participant(8, b"run 7, round 2").advert(10)
    without_me = tuple(a for a in roster if a.name != NODES[0][1])
    other_me = participant(0).advert(10)
    more = replace(roster[1], examples=11)
    cases: list[tuple[tuple[Advert, ...], type[PoflError]]] = [
        (roster[:2], LimitError),
        ((roster[0], forged, *roster[2:]), CryptoError),
        ((roster[0], renamed, *roster[2:]), CryptoError),
        ((*roster, other_session), CryptoError),
        ((roster[0], more, *roster[2:]), CryptoError),
        (without_me, CheatingError),
        ((other_me, *roster[1:]), CheatingError),
        (tuple(reversed(roster)), CheatingError),
        ((roster[0], roster[0], *roster[2:]), CheatingError),
    ]
    for case, error in cases:
        me = participant(0)
        me._advert, me._stage = roster[0], secure_sum._Stage.ADVERTISED
        with pytest.raises(error):
            me.share(case)


def test_a_miner_asks_for_company() -> None:
    world = World(4)
    world.people[2] = participant(2, least=5)
    with pytest.raises(LimitError, match="a sum of 4, this miner takes part in sums of at least 5"):
        world.shares()


def test_shares_of_a_survivor_and_of_a_lost_one_are_never_both_given() -> None:
    """The manager tells half that one is lost and half that it is not: nobody signs twice, neither half is enough."""
    world = World(6)
    survivors = world.masked()
    assert survivors == (0, 1, 2, 3, 4, 5)
    with_all, without = survivors, survivors[1:]
    for i in (1, 2, 3):
        world.people[i].consent(with_all)
    for i in (4, 5):
        world.people[i].consent(without)
    world.people[0].consent(with_all)
    with pytest.raises(SequenceError):
        world.people[1].consent(without)
    message = secure_messages.consent_message(SESSION, world.collector.roster, with_all)
    three = tuple(Consent(i, signer(NODES[i][0])(message)) for i in (1, 2, 3))
    with pytest.raises(CheatingError, match="3 survivors agreed on who is left, 4 are needed"):
        world.people[1].reveal(three)
    four_with_one_twice = (*three, three[0])
    with pytest.raises(CheatingError):
        world.people[2].reveal(four_with_one_twice)
    other = secure_messages.consent_message(SESSION, world.collector.roster, without)
    mixed = (*three, Consent(4, signer(NODES[4][0])(other)))
    with pytest.raises(CryptoError):
        world.people[3].reveal(mixed)
    # A step that failed is not taken again, with better words.
    good = (*three, Consent(0, signer(NODES[0][0])(message)))
    with pytest.raises(SequenceError):
        world.people[3].reveal(good)


@pytest.mark.parametrize("survivors", [(0,), (0, 1), (1, 2, 3), (0, 0, 1), (1, 0, 2), (0, 1, 9), (0, 1, 255)])
def test_survivors_that_would_single_somebody_out_are_refused(survivors: tuple[int, ...]) -> None:
    world = World(4)
    world.masked()
    me = world.people[0]
    with pytest.raises(CheatingError):
        me.consent(survivors)


def test_a_vector_is_not_masked_for_too_few_peers() -> None:
    world = World(4)
    inboxes = world.shares()
    mine = inboxes[0]
    for inbox in ((b"", mine[1], b"", b""), mine[:3], ()):
        me = World(4)
        me.shares()
        with pytest.raises(PoflError):
            me.people[0].mask(vector(0), inbox)


def test_steps_come_once_and_in_order() -> None:
    world = World(4)
    me = world.people[0]
    with pytest.raises(SequenceError):
        me.mask(vector(0), ())
    world.consents()
    for step in (
        lambda: me.advert(10), lambda: me.share(world.collector.roster), lambda: me.mask(vector(0), ()),
        lambda: me.consent(world.collector.survivors),
    ):  # fmt: skip
        with pytest.raises(SequenceError):
            step()


def test_a_share_for_another_holder_or_session_does_not_open() -> None:
    """The manager swaps sealed shares: they are of no use to who gets them, who goes on without."""
    world = World(6)
    inboxes = world.shares()
    swapped = list(inboxes[0])
    swapped[1], swapped[2] = swapped[2], swapped[1]
    me = world.people[0]
    me.mask(vector(0), tuple(swapped))
    assert set(me._held) == {0, 3, 4, 5}


# Participants that lie


def lies(reveal: Reveal) -> Reveal:
    return Reveal(tuple(bytes(33) if share else b"" for share in reveal.shares))


@pytest.mark.parametrize("liars", [1, 2])
def test_a_wrong_share_is_noticed_at_once_and_costs_its_sender_alone(liars: int) -> None:
    world = World(6, gone={5: 3})
    consents = world.consents()
    for i in world.here(5):
        reveal = world.people[i].reveal(consents)
        if i < liars:
            with pytest.raises(CheatingError, match="6 of the shares are not those that it said it held"):
                world.collector.take_reveal(world.at(i), lies(reveal))
        else:
            world.collector.take_reveal(world.at(i), reveal)
    if liars == 1:
        np.testing.assert_allclose(world.collector.total().mean, np.mean([vector(i) for i in range(5)], axis=0), atol=2**-24)
    else:
        with pytest.raises(CryptoError, match="secrets of 6 cannot be restored, with 4 good shares") as caught:
            world.collector.total()
        assert caught.value.values["names"] == (), "no innocent is named for it"


def test_as_many_liars_as_may_drop_out_block_nothing() -> None:
    """Five of sixteen: no search could find eleven right ones of sixteen shares in 500 tries for each of sixteen secrets."""
    world = World(16)
    consents = world.consents()
    liars = {1, 4, 7, 10, 13}
    for i in world.people:
        reveal = world.people[i].reveal(consents)
        if i in liars:
            # One share among sixteen is wrong, or kept back, each of another dealer's.
            at, bad = (i * 5) % 16, b"" if i % 2 else bytes(33)
            reveal = Reveal(tuple(bad if place == at else share for place, share in enumerate(reveal.shares)))
            with pytest.raises(CheatingError, match="1 of the shares"):
                world.collector.take_reveal(world.at(i), reveal)
        else:
            world.collector.take_reveal(world.at(i), reveal)
    np.testing.assert_allclose(world.collector.total().mean, np.mean([vector(i) for i in range(16)], axis=0), atol=2**-24)
    assert world.collector.conflicts == frozenset()


def of_another(dealt: Dealt, at: Sequence[int]) -> Dealt:
    """Commits to shares that some are not given."""
    commitments = [bytes(64) if place in at else commitment for place, commitment in enumerate(dealt.commitments)]
    return replace(dealt, commitments=tuple(commitments))


def test_who_was_dealt_wrong_shares_is_not_blamed_for_them() -> None:
    world = World(6, deals={0: lambda dealt: of_another(dealt, (4, 5))})
    np.testing.assert_allclose(world.run().mean, np.mean([vector(i) for i in range(6)], axis=0), atol=2**-24)
    dealer = NODES[0][1]
    assert world.collector.conflicts == {(dealer, NODES[4][1]), (dealer, NODES[5][1])}


def test_a_dealer_of_too_many_wrong_shares_is_named_before_anything_is_revealed() -> None:
    world = World(6, deals={0: lambda dealt: of_another(dealt, (3, 4, 5)), 1: lambda dealt: of_another(dealt, (5,))})
    with pytest.raises(CryptoError, match=r"secrets of 1 cannot be restored.*dealt wrong shares") as caught:
        world.masked()
    assert caught.value.values["names"] == (NODES[0][1],)


def test_a_dealer_and_a_third_that_drops_out_leave_nobody_to_blame() -> None:
    """What a third of liars could say of an honest dealer proves nothing; the two sides are known, and no more."""
    world = World(6, gone={5: 3}, deals={0: lambda dealt: of_another(dealt, (3, 4))})
    with pytest.raises(CryptoError, match="secrets of 1 cannot be restored") as caught:
        world.masked()
    assert caught.value.values["names"] == ()
    assert world.collector.conflicts == {(NODES[0][1], NODES[3][1]), (NODES[0][1], NODES[4][1])}


def test_a_third_of_liars_has_no_honest_dealer_named() -> None:
    world = World(6)
    inboxes = world.shares()
    for i in world.people:
        masked = world.people[i].mask(vector(i), inboxes[i])
        held = (bytes(32),) * 6 if i in (1, 2) else masked.held
        world.collector.take_masked(i, masked.vector.tobytes(), held)
    survivors = world.collector.close_masked()
    for i in world.people:
        world.collector.take_consent(i, world.people[i].consent(survivors))
    for i in world.people:
        reveal = world.people[i].reveal(world.collector.consents())
        world.collector.take_reveal(i, lies(reveal) if i in (1, 2) else reveal)
    np.testing.assert_allclose(world.collector.total().mean, np.mean([vector(i) for i in range(6)], axis=0), atol=2**-24)


def test_shares_of_no_polynomial_name_their_dealer() -> None:
    """Committed to and given alike, they are checked well, and give no secret: that is the dealer's doing for certain."""
    world = World(6)
    real = share_secret

    def crooked(secret: bytes, needed: int, count: int, rng: SystemRng) -> tuple[bytes, ...]:
        return (bytes(33), *real(secret, needed, count, rng)[1:])

    roster = world.adverts()
    for i in world.people:
        with pytest.MonkeyPatch.context() as patch:
            if i == 2:
                patch.setattr(secure_sum, "share_secret", crooked)
            world.collector.take_shares(i, world.people[i].share(roster))
    inboxes = world.collector.inboxes()
    for i in world.people:
        masked = world.people[i].mask(vector(i), inboxes[i])
        world.collector.take_masked(i, masked.vector.tobytes(), masked.held)
    survivors = world.collector.close_masked()
    for i in world.people:
        world.collector.take_consent(i, world.people[i].consent(survivors))
    for i in world.people:
        world.collector.take_reveal(i, world.people[i].reveal(world.collector.consents()))
    assert world.collector.conflicts == frozenset()
    with pytest.raises(CryptoError, match="it dealt wrong shares") as caught:
        world.collector.total()
    assert caught.value.values["names"] == (NODES[2][1],)


def test_commitments_are_of_one_dealer_one_holder_and_one_roster() -> None:
    first, second = World(4), World(4)
    first.shares()
    second.shares()
    seen = [first.collector._dealt[i].commitments for i in range(4)] + [second.collector._dealt[0].commitments]
    halves = [c[at : at + 32] for commitments in seen for c in commitments for at in (0, 32)]
    assert len(set(halves)) == len(halves)
    share = bytes(33)
    place = secure_messages.place_of(b"r" * 32, 0, 1)
    assert len({secure_messages.share_commitment(place, kind, share) for kind in (0, 1)}) == 2


def test_keys_that_would_stop_everybody_cost_their_sender_its_place() -> None:
    private, name = NODES[0]
    for bad in (
        {"mask_key": bytes(32)},
        {"mask_key": (1).to_bytes(32, "little")},
        {"share_key": bytes(32)},
    ):
        world = World(4)
        bare = replace(world.people[0].advert(10), signature=b"", **bad)
        signed = replace(bare, signature=signer(private)(secure_messages.advert_message(SESSION, bare)))
        with pytest.raises(CryptoError):
            world.collector.take_advert(name, signed, 10)


def test_a_vector_that_is_not_what_it_says_makes_a_sum_out_of_range() -> None:
    world = World(4)
    world.consents()
    world.collector._masked[2] = np.frombuffer(SeededRng("noise").bytes(8 * SIZE), np.uint64).copy()
    for i in world.here(5):
        world.collector.take_reveal(world.at(i), world.people[i].reveal(world.collector.consents()))
    with pytest.raises(CryptoError, match="out of range"):
        world.collector.total()


def test_what_participants_send_is_checked() -> None:
    world = World(4)
    mine = world.people[0].advert(10)
    name = NODES[0][1]
    collector = world.collector
    for advert, most, error in (
        (mine, 9, CheatingError),
        (replace(mine, examples=0), 9, CheatingError),
        (replace(mine, examples=9), 9, CryptoError),
        (replace(mine, name=NODES[1][1]), 99, CheatingError),
        (replace(mine, share_key=b"x" * 31), 99, MalformedError),
        (participant(0, b"other").advert(10), 99, CryptoError),
    ):
        with pytest.raises(error):
            collector.take_advert(name, advert, most)
    collector.take_advert(name, mine, 10)
    with pytest.raises(LimitError, match="1 take part, a secure sum needs 3"):
        collector.close_roster()
    world = World(4)
    world.masked()
    collector = world.collector
    good = collector._dealt[0]
    for call in (
        lambda: collector.take_shares(0, Dealt((), good.commitments)),
        lambda: collector.take_shares(0, Dealt((b"",) * 4, good.commitments)),
        lambda: collector.take_shares(0, Dealt(good.sealed, good.commitments[:3])),
        lambda: collector.take_shares(0, Dealt(good.sealed, (b"",) * 4)),
        lambda: collector.take_masked(0, b"x" * 39, (b"",) * 4),
        lambda: collector.take_masked(0, b"x" * 40, (b"",) * 3),
        lambda: collector.take_masked(0, b"x" * 40, (b"x",) * 4),
        lambda: collector.take_consent(0, Consent(1, b"")),
        lambda: collector.take_reveal(0, Reveal((b"x",) * 4)),
        lambda: collector.take_reveal(0, Reveal(())),
    ):
        with pytest.raises(PoflError):
            call()
    with pytest.raises(CryptoError):
        collector.take_consent(0, replace(world.people[1].consent(collector.survivors), index=0))


def test_records_survive_the_wire_and_limits_hold() -> None:
    advert = participant(0, suite=Suite.HYBRID).advert(10)
    assert decode(Advert, encode(advert)) == advert
    with pytest.raises(LimitError):
        participant(0).advert(MAX_WEIGHT + 1)
    with pytest.raises(LimitError):
        share_secret(bytes(32), 3, 2, SystemRng())
    assert [threshold(n) for n in range(3, 10)] == [2, 3, 4, 4, 5, 6, 6]
    for count in range(3, 65):
        colluding = (count - 1) // 3
        assert 2 * threshold(count) > count + colluding

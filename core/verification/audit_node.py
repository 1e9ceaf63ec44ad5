"""The validator's side of audits and of stored checks (paper, sections II and V-D; design: verification, section 6).

``AuditNode`` ends in a finding: ``Valid``, ``PoolFault`` or ``RequesterFault``; or ``Undecided`` when her answer is "malformed"
and the pool's opening is awaited, or when chance spoiled the check and the next attempt is due. Between an honest requester
and an honest node the check always passes, so a failed one is never the pool's fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.chain.block import Vm
from core.chain.vote import SignedVerdict
from core.crypto.homomorphic import PARAMS, NumberMask, PublicKey, expand_uniform, number_mask, unpack
from core.crypto.homomorphic.ntt import to_ntt
from core.crypto.homomorphic.params import Ints, Residues
from core.crypto.signing import KeyPair
from core.crypto.zero_check import ZeroCheckVerifier
from core.errors import CheatingError, CryptoError, InconclusiveError, InputError, MalformedError, SequenceError
from core.ids import AccountId, Correct, Digest, NodeId
from core.ports import Rng
from core.verification import body as bodies
from core.verification.activations import apply
from core.verification.audit_evidence import export
from core.verification.audit_requester import AUDIT_RUNS, audit_limit, hint_session, run_coins
from core.verification.body import Blame
from core.verification.field import centred, halves, multiply, random_values, unpack_values
from core.verification.forms import (
    AuditCoins,
    KnownPart,
    SampleSums,
    audit_form,
    audit_known,
    label_number,
    stored_number,
)
from core.verification.messages import (
    AuditAnswer,
    AuditOpen,
    BodyWanted,
    Challenges,
    Envelope,
    Hints,
    LayerValues,
    MaskedProducts,
    Message,
    ModelBody,
    RunSeeds,
    StoredOpen,
    StoredOpened,
    ZeroCommitments,
    ZeroNumbers,
    ZeroOpenings,
    ZeroQueries,
)
from core.verification.receipt import AnswerKind, SignedAnswer, verify_answer, verify_receipt, z_digest, z_mark
from core.verification.scored_model import predict
from core.verification.session import Session, verify_openings
from core.verification.task import PublicKind, TaskContext
from core.verification.test_set import EncryptedTestSet
from core.verification.transcript import Purpose, Side

__all__ = ["AuditNode", "AuditedClaim", "Finding", "PoolFault", "RequesterFault", "StoredNode", "Undecided", "Valid"]


@dataclass(frozen=True, slots=True)
class AuditedClaim:
    """A claim on chain and the body behind it."""

    pool: AccountId
    correct: Correct
    vm: Vm
    body: bytes
    higher: tuple[SignedVerdict, ...] = ()
    """Verdicts that refute or skip every higher claim."""


@dataclass(frozen=True, slots=True)
class Valid:
    """The committed model scores what was claimed. ``z_digest`` makes the verdict's tag (core.verification.receipt.tag)."""

    correct: Correct
    z_digest: Digest


@dataclass(frozen=True, slots=True)
class PoolFault:
    """A passed check with another N, or a mismatch that everyone can see.

    ``correct`` and ``z_digest`` are those of the passed audit, None without one.
    """

    reason: str
    correct: Correct | None = None
    z_digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class RequesterFault:
    reason: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """No finding yet. ``malformed``: the pool's opening is awaited, see AuditNode.judge; else the next attempt is due."""

    reason: str
    malformed: SignedAnswer | None = None


Finding = Valid | PoolFault | RequesterFault | Undecided


class _Verifier(Session):
    """The node's half of a zero check at the end of a session."""

    _verifier: ZeroCheckVerifier | None = None
    _openings: ZeroOpenings | None = None
    """As the requester signed them."""

    def _reveal(self, message: ZeroCommitments) -> Sequence[Message]:
        assert self._verifier is not None
        numbers = tuple(self._verifier.reveal(message.commitments))
        self._expected = (ZeroOpenings,)
        return (ZeroNumbers(numbers),)

    def _check_openings(self, message: ZeroOpenings) -> None:
        """Raises CheatingError or InconclusiveError."""
        assert self._verifier is not None
        try:
            verify_openings(self.task.requester, self._head_before, message)
        except CryptoError as error:
            raise CheatingError(f"the openings are not signed by the requester: {error.message}") from None
        self._openings = message
        self._verifier.conclude(message.openings)


class AuditNode(_Verifier):
    """Audits one claim with the requester's help."""

    def __init__(
        self,
        task: TaskContext,
        session: bytes,
        validator: KeyPair,
        pk: PublicKey,
        test_set: EncryptedTestSet,
        claim: AuditedClaim,
        rng: Rng,
        attempt: int = 0,
    ) -> None:
        """``session``: 32 fresh random bytes. ``attempt``: 0, 1 or 2; each is charged when it opens."""
        super().__init__(Side.CALLER, Purpose.AUDIT, task, session, audit_limit(task, task.family))
        self._key, self._pk, self._test_set, self._claim, self._rng = validator, pk, test_set, claim, rng
        self._open = AuditOpen(
            task.chain_id,
            task.task_id,
            claim.pool,
            claim.vm.model_commitment,
            NodeId(validator.public_key),
            attempt,
            claim.higher,
        )
        self._encrypted: bodies.EncryptedModel | None = None
        self._answer: SignedAnswer | None = None
        self._z: tuple[Ints, ...] = ()
        self._z_digest: Digest | None = None
        self._seeds: tuple[bytes, ...] = ()
        self._coins: tuple[AuditCoins, ...] = ()
        """Drawn when the body is read, shown to nobody before ``Z`` is fixed (seeds) and the hints are here (χ)."""
        self._sums: SampleSums | None = None
        self._masks: tuple[NumberMask, ...] = ()
        self._model_c1: Ints | None = None
        self._hint_c1: list[Ints] = []
        """Transforms."""
        self._known: list[KnownPart] = []
        self._hints: Residues | None = None
        self._is_started = False
        self.finding: Finding | None = None

    def start(self) -> tuple[Envelope, ...]:
        """Checks what needs no help; opens the session, or sets ``finding`` at once and sends nothing."""
        if self._is_started:
            raise SequenceError("the audit has been started")
        self._is_started = True
        claim, task = self._claim, self.task
        try:
            verify_receipt(task.requester, task.chain_id, task.task_id, claim.pool, claim.vm)
            if bodies.commitment(task.chain_id, task.task_id, claim.pool, claim.body) != claim.vm.model_commitment:
                raise MalformedError("the body is not the one under the claimed commitment")
            self._encrypted = bodies.read_body(claim.body, task.family)
        except (CryptoError, InputError) as error:
            self._found(PoolFault(error.message))
            return ()
        if not 0 <= claim.correct <= task.samples:
            self._found(PoolFault(f"{claim.correct} of {task.samples} claimed"))
            return ()
        self._seeds = tuple(self._rng.bytes(32) for _ in range(AUDIT_RUNS))
        self._expected = (BodyWanted,)
        return self._send((self._open,))

    def work_ahead(self) -> None:
        """What needs only the claim, then what needs ``Z`` as well. Nothing secret leaves by it."""
        if self.finding is not None or self._encrypted is None:
            return
        if self._sums is None:
            self._coins = tuple(self._draw(run) for run in range(AUDIT_RUNS))
            self._sums = SampleSums(self.task, self._test_set, np.stack([one.s for one in self._coins]))
            self._masks = tuple(number_mask(self._pk, self._rng) for _ in range(AUDIT_RUNS))
            self._model_c1 = to_ntt(self._encrypted.c1, PARAMS)
            session = hint_session(self._open, self.session)
            contexts = [self.task.public(PublicKind.HINT, run, session) for run in range(AUDIT_RUNS)]
            self._hint_c1 = [to_ntt(expand_uniform(PARAMS, context, 1), PARAMS) for context in contexts]
        if self._is_fixed and not self._known:
            assert self._answer is not None
            assert self._model_c1 is not None
            shape, model = self._encrypted.shape, (self._encrypted.c0, self._model_c1)
            x = [halves(apply(shape.activation, z, shift)) for z, shift in zip(self._z, shape.shifts, strict=False)]
            cut = [halves(z) for z in self._z]
            labels = label_number(self.task, self._test_set, predict(self._z[-1]))
            correct = self._answer.answer.correct
            self._known = [audit_known(self.task, shape, one, cut, x, model, labels, correct) for one in self._coins]

    @property
    def answer(self) -> SignedAnswer | None:
        """The requester's answer, once she signed one about this claim."""
        return self._answer

    @property
    def _is_fixed(self) -> bool:
        """All of ``Z`` is here and is what she signed."""
        return len(self._z) == self.task.family.layers

    def give_up(self, reason: str) -> RequesterFault:
        """The caller's deadline has passed, or what the requester sends stays unusable."""
        fault = RequesterFault(reason)
        if self.finding is None or isinstance(self.finding, Undecided):
            self._found(fault)
        return fault

    def abandon(self, reason: str) -> None:
        """Nobody waits for the finding any more; what was said can be exported. A finding that is there stays."""
        if self.finding is None:
            self._found(Undecided(reason))

    def judge(self, opening: bytes | None) -> PoolFault | RequesterFault:
        """After the answer "malformed": whose fault it is, by the pool's opening (None: none came by open_ms)."""
        if not isinstance(self.finding, Undecided) or self.finding.malformed is None:
            raise SequenceError("no answer 'malformed' to judge")
        blame = bodies.judge_opening(self._pk, self._claim.body, self.task.family, opening)
        if blame is Blame.REQUESTER:
            self.finding = RequesterFault("the requester called a well-formed body malformed: its opening makes it again")
        else:
            self.finding = PoolFault("the body is malformed and no opening makes it again")
        return self.finding

    def export(self) -> bytes:
        """The signed transcript, digests only. Raises SequenceError before there is a finding."""
        if self.finding is None:
            raise SequenceError("the audit is not over")
        result = f"{type(self.finding).__name__}: " + (
            f"{self.finding.correct} of {self.task.samples}" if isinstance(self.finding, Valid) else self.finding.reason
        )
        return export(self.transcript, self._key, self.task.requester, result, self._open, self._answer, self._openings)

    def _handle(self, message: Message) -> Sequence[Message]:
        try:
            match message:
                case BodyWanted():
                    self._expected = (AuditAnswer,)
                    return (ModelBody(self._claim.body if message.wanted else b""),)
                case AuditAnswer():
                    return self._take_answer(message.answer)
                case LayerValues():
                    return self._take_layer(message)
                case Hints():
                    return self._challenge(message)
                case MaskedProducts():
                    return self._ask(message)
                case ZeroCommitments():
                    return self._reveal(message)
                case ZeroOpenings():
                    return self._conclude(message)
        except CheatingError as error:
            self._found(RequesterFault(error.message))
            return ()
        except InconclusiveError as error:
            self._found(Undecided(error.message))
            return ()
        raise AssertionError(type(message))

    def _take_answer(self, signed: SignedAnswer) -> Sequence[Message]:
        answer, opened = signed.answer, self._open
        try:
            verify_answer(self.task.requester, signed)
        except CryptoError as error:
            raise CheatingError(f"the answer is not signed by the requester: {error.message}") from None
        about = (answer.chain_id, answer.task_id, answer.pool, answer.model_commitment)
        if about != (opened.chain_id, opened.task_id, opened.pool, opened.model_commitment):
            raise CheatingError("the requester answered about another claim")
        self._answer = signed
        if answer.kind is AnswerKind.MALFORMED:
            self._found(Undecided("the requester says that the body is malformed", signed))
            return ()
        if answer.correct > self.task.samples:
            raise CheatingError(f"N* = {answer.correct} of {self.task.samples} samples")
        self._expected = (LayerValues,)
        return ()

    def _take_layer(self, message: LayerValues) -> Sequence[Message]:
        family = self.task.family
        number = len(self._z) + 1
        if message.layer != number:
            raise MalformedError(f"layer {message.layer} arrived, expected {number}")
        z = centred(unpack_values(message.z, (self.task.samples, family.dims[number])))
        bound = family.bounds()[number - 1]
        if int(np.abs(z).max()) > bound:
            raise CheatingError(f"|Z_{number}| is up to {int(np.abs(z).max())}, beyond every model's bound {bound}")
        layers = (*self._z, z)
        if number < family.layers:
            self._z = layers
            return ()
        assert self._answer is not None
        digest, answer = z_digest(layers), self._answer.answer
        if z_mark(answer.task_id, answer.model_commitment, digest) != answer.z_mark:
            raise CheatingError("the layers do not have the digest that the requester signed")
        self._z, self._z_digest = layers, digest
        self._expected = (Hints,)
        return (RunSeeds(self._seeds),)

    def _challenge(self, message: Hints) -> Sequence[Message]:
        if len(message.hints) != AUDIT_RUNS:
            raise MalformedError(f"{len(message.hints)} hints, expected {AUDIT_RUNS}")
        self._hints = np.concatenate([unpack(hint, 1) for hint in message.hints])
        self.work_ahead()
        self._expected = (MaskedProducts,)
        return (Challenges(tuple(one.chi for one in self._coins)),)

    def _ask(self, message: MaskedProducts) -> Sequence[Message]:
        """Step 3: one form a run, each with its own coins."""
        assert self._hints is not None
        assert self._sums is not None
        w = unpack_values(message.w, (AUDIT_RUNS, self.task.features))
        products = self._sums.times(np.stack([multiply(w[run], one.c2) for run, one in enumerate(self._coins)]))
        forms = [
            audit_form(self.task, one, w[run], products[run], (hint[None], self._hint_c1[run]), self._known[run])
            for run, (one, hint) in enumerate(zip(self._coins, self._hints, strict=True))
        ]
        self._verifier = ZeroCheckVerifier(self._pk, forms, self._rng, self.transcript.head, masks=self._masks)
        self._expected = (ZeroCommitments,)
        return (ZeroQueries(tuple(self._verifier.queries())),)

    def _draw(self, run: int) -> AuditCoins:
        samples, dims = self.task.samples, self.task.family.dims
        s, r = run_coins(self._seeds[run], samples, dims[1])
        secret = random_values(self._rng, dims[0] + 3)
        layers = tuple((random_values(self._rng, samples), random_values(self._rng, width)) for width in dims[2:])
        return AuditCoins(s, r, int(secret[-3]), secret[:-3], int(secret[-2]), int(secret[-1]), layers)

    def _conclude(self, message: ZeroOpenings) -> Sequence[Message]:
        """Step 4."""
        assert self._answer is not None
        assert self._z_digest is not None
        self._check_openings(message)
        answer = self._answer.answer
        if answer.correct == self._claim.correct:
            self._found(Valid(answer.correct, self._z_digest))
        else:
            reason = f"claimed {self._claim.correct}, the committed model scores {answer.correct} of {self.task.samples}"
            self._found(PoolFault(reason, answer.correct, self._z_digest))
        return ()

    def _found(self, finding: Finding) -> None:
        self.finding = finding
        self._end(f"the audit found {type(finding).__name__}")


class StoredNode(_Verifier):
    """Checks at publication that ``Σ_c Y[c, i] = 1`` for every sample; padding has weight zero in every form."""

    def __init__(
        self,
        task: TaskContext,
        session: bytes,
        validator: NodeId,
        pk: PublicKey,
        test_set: EncryptedTestSet,
        rng: Rng,
        attempt: int = 0,
    ) -> None:
        super().__init__(Side.CALLER, Purpose.STORED_CHECK, task, session, 16 * PARAMS.poly_bytes)
        self._pk, self._test_set, self._rng = pk, test_set, rng
        self._validator = validator
        self._open = StoredOpen(task.chain_id, task.task_id, validator, attempt)
        self.is_passed = False

    def start(self) -> tuple[Envelope, ...]:
        """Opens the session."""
        if self._sent:
            raise SequenceError("the check has been started")
        self._expected = (StoredOpened,)
        return self._send((self._open,))

    def export(self, key: KeyPair, failure: str = "") -> bytes:
        """The transcript, signed by this validator's ``key``. ``failure``: what step raised, or why nothing came."""
        if key.public_key != self._validator:
            raise SequenceError("a transcript is signed by the validator that opened its session")
        passed = "Stored: the label scores of every row sum to one"
        result = passed if self.is_passed else f"StoredFault: {failure or 'not finished'}"
        return export(self.transcript, key, self.task.requester, result, self._open, None, self._openings)

    def _handle(self, message: Message) -> Sequence[Message]:
        """Raises CheatingError where a label is not one-hot or the requester lies, InconclusiveError by chance."""
        match message:
            case StoredOpened():
                forms = []
                for _ in range(AUDIT_RUNS):
                    s = random_values(self._rng, self.task.samples)
                    forms.append(stored_number(self.task, self._test_set, s).equals(-int(np.sum(s))))
                self._verifier = ZeroCheckVerifier(self._pk, forms, self._rng, self.transcript.head)
                self._expected = (ZeroCommitments,)
                return (ZeroQueries(tuple(self._verifier.queries())),)
            case ZeroCommitments():
                return self._reveal(message)
            case ZeroOpenings():
                self._check_openings(message)
                self.is_passed = True
                self._end("the stored check is complete")
                return ()
        raise AssertionError(type(message))

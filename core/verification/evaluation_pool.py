"""The pool's side of one evaluation (paper, section IV; design: verification, section 3).

``start`` opens the offline part, which needs no model and runs while training does; ``evaluate`` opens the online part when the
model is final and its commitment is on chain. ``result`` is N and what the block header needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.chain.block import Vm
from core.crypto import garbling
from core.crypto.circuits import comparison_circuit, label_bits
from core.crypto.homomorphic import NumberMask, PublicKey, mask_for_decryption, number_mask, pack
from core.crypto.homomorphic.params import Ints
from core.crypto.oblivious_transfer import Choices, ExtensionSender, SetupReply
from core.crypto.prg import LABEL_SIZE
from core.crypto.zero_check import ZeroCheckVerifier
from core.errors import CheatingError, CryptoError, InconclusiveError, MalformedError, SequenceError
from core.ids import AccountId, Correct, Digest, ModelCommitment
from core.ports import Rng
from core.verification.evaluation_requester import (
    EVALUATION_CHECKS,
    EVALUATION_RUNS,
    evaluation_limit,
    foreseen_commitment,
    keys_digest,
)
from core.verification.field import T, centred, matmul, pack_values, random_values, unpack_values
from core.verification.forms import Number, evaluation_forms, evaluation_products, label_number
from core.verification.messages import (
    EXTRA_ROWS,
    BaseTransfer,
    BatchAccepted,
    Envelope,
    EvaluationOpen,
    GarbledLabels,
    KnowledgeChallenge,
    KnowledgeCommitment,
    KnowledgeOpening,
    KnowledgeShares,
    MaskedModel,
    MaskedRows,
    Message,
    OutputKeys,
    TransferRequest,
    ZeroCommitments,
    ZeroNumbers,
    ZeroOpenings,
    ZeroQueries,
)
from core.verification.receipt import verify_receipt
from core.verification.scored_model import Labels, ScoredModel
from core.verification.session import Session, verify_openings
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet
from core.verification.transcript import Purpose, Side

__all__ = ["EvaluationPool", "EvaluationResult"]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """N of this model, checked against the committed labels, and the header's ``vm``."""

    correct: Correct
    vm: Vm


class EvaluationPool(Session):
    """Runs one evaluation against the requester."""

    def __init__(
        self,
        task: TaskContext,
        session: bytes,
        pool: AccountId,
        pk: PublicKey,
        test_set: EncryptedTestSet,
        rng: Rng,
        batch: int = 0,
    ) -> None:
        """``session``: 32 fresh random bytes. ``batch``: 0, or 1 for the spare."""
        super().__init__(Side.CALLER, Purpose.EVALUATION, task, session, evaluation_limit(task))
        self._pool, self._pk, self._test_set, self._rng, self._batch = pool, pk, test_set, rng, batch
        self._circuit = comparison_circuit(task.samples, task.label_bits)
        self._transfer = ExtensionSender(session, rng)
        self._masks: Ints | None = None
        """``H`` and the two extra rows, (K + 2, M); None once used."""
        self._shares: Ints | None = None
        """The pool's shares ``m_k``, (K + 2, I): the masked rows decrypt to ``H A^T - m``."""
        self._opened_shares = b""
        """g, packed; and the transcript's head under which she committed to it, with the commitment."""
        self._foreseen: tuple[Digest, Digest] | None = None
        self._setup: SetupReply | None = None
        self._model: ScoredModel | None = None
        self._commitment: ModelCommitment | None = None
        self._z: Ints | None = None
        self._predictions: Labels | None = None
        self._coins: Ints | None = None
        """Of the zero check, (runs, I + K + 1); with them ``s^T (A W_1) r`` and what masks the forms."""
        self._products: list[Number] = []
        self._number_masks: tuple[NumberMask, ...] = ()
        self._labels: Number | None = None
        self._garbling: garbling.Garbling | None = None
        self._verifier: ZeroCheckVerifier | None = None
        self._pending: EvaluationResult | None = None
        self._checks = 0
        """Zero checks that were begun."""
        self._is_prepared = False
        self._is_started = False
        self.result: EvaluationResult | None = None

    @property
    def is_prepared(self) -> bool:
        """The offline part is done: ``evaluate`` may be called."""
        return self._is_prepared

    def start(self) -> tuple[Envelope, ...]:
        """Opens the offline part. Step 1: the masked ciphertexts of ``H A^T`` for uniform H and two extra rows."""
        if self._is_started:
            raise SequenceError("the evaluation has been started; a batch is used once")
        self._is_started = True
        rows = self.task.first_width + EXTRA_ROWS
        masks = random_values(self._rng, rows * self.task.features).reshape(rows, self.task.features)
        halves0, halves1, shares = [], [], []
        for batch in range(self.task.batches):
            c0 = self._test_set.rows0[batch].combine(masks)
            c1 = self._test_set.rows1[batch].combine(masks)
            masked0, masked1, share = mask_for_decryption(self._pk, c0, c1, self._rng)
            halves0.append(masked0)
            halves1.append(masked1)
            shares.append(share)
        self._masks = masks
        self._shares = np.remainder(-self.task.gather(np.stack(shares, axis=1)), T)
        packed = pack(np.stack(halves0, axis=1)) + pack(np.stack(halves1, axis=1))
        self._expected = (BaseTransfer,)
        return self._send(
            (
                EvaluationOpen(self.task.chain_id, self.task.task_id, self._pool, self._batch),
                BaseTransfer(self._transfer.request().encode()),
                MaskedRows(packed),
            )
        )

    def evaluate(self, model: ScoredModel, commitment: ModelCommitment) -> tuple[Envelope, ...]:
        """Opens the online part. Step 3: ``E = W_1^T - H``.

        Raises:
            SequenceError: the offline part is not done, or a model was sent already.
            MalformedError: a model of another family than the task's.
        """
        if not self._is_prepared or self._masks is None:
            raise SequenceError("a model is sent once, after the offline part")
        if model.family != self.task.family:
            raise MalformedError(f"a model of {model.shape}, the task asks for {self.task.family}")
        e = np.remainder(model.weights[0].T - self._masks[: self.task.first_width], T)
        self._model, self._commitment, self._masks = model, commitment, None
        self._expected = (TransferRequest,)
        return self._send((MaskedModel(commitment, pack_values(e)),))

    def work_ahead(self) -> None:
        """The zero check's coins stay in this object until the requester has answered, so they may be drawn early."""
        if self._model is not None and self._coins is None:
            width = self.task.samples + self.task.first_width + 1
            coins = random_values(self._rng, EVALUATION_RUNS * width).reshape(EVALUATION_RUNS, width)
            self._products = evaluation_products(self.task, self._test_set, self._model, coins)
            self._number_masks = tuple(number_mask(self._pk, self._rng) for _ in range(EVALUATION_RUNS))
            self._coins = coins
        if self._predictions is not None and self._labels is None:
            self._labels = label_number(self.task, self._test_set, self._predictions)

    def _handle(self, message: Message) -> Sequence[Message]:
        match message:
            case BaseTransfer():
                self._setup = SetupReply.decode(message.data)
                self._expected = (KnowledgeChallenge,)
                return ()
            case KnowledgeChallenge():
                return self._show_knowledge(message)
            case KnowledgeCommitment():
                self._foreseen = (self._head_before, message.commitment)
                self._expected = (BatchAccepted,)
                return (KnowledgeShares(self._opened_shares),)
            case BatchAccepted():
                return self._accept(message)
            case TransferRequest():
                return self._garble(message)
            case OutputKeys():
                return self._check(message)
            case ZeroCommitments():
                assert self._verifier is not None
                numbers = tuple(self._verifier.reveal(message.commitments))
                self._expected = (ZeroOpenings,)
                return (ZeroNumbers(numbers),)
            case ZeroOpenings():
                return self._conclude(message)
        raise AssertionError(type(message))

    def _show_knowledge(self, message: KnowledgeChallenge) -> Sequence[Message]:
        """Step 2: ``h = Σ γ_k H_k + H'`` and ``g = Σ γ_k m_k + m'``; after that the extra rows are spent."""
        assert self._setup is not None
        assert self._masks is not None
        assert self._shares is not None
        width = self.task.first_width
        gamma = unpack_values(message.gamma, (EXTRA_ROWS, width))
        self._transfer.finish(self._setup)
        h = np.remainder(matmul(gamma, self._masks[:width]) + self._masks[width:], T)
        g = np.remainder(matmul(gamma, self._shares[:width]) + self._shares[width:], T)
        self._masks, self._shares, self._opened_shares = self._masks[:width], self._shares[:width], pack_values(g)
        self._expected = (KnowledgeCommitment,)
        return (KnowledgeOpening(pack_values(h)),)

    def _accept(self, message: BatchAccepted) -> Sequence[Message]:
        """The batch is good if she knew g before it came: then it has told her nothing about H (docs/adr/0067).

        Raises:
            CheatingError: she did not, so her encrypted rows are malformed. No model has left, and none must.
        """
        assert self._foreseen is not None
        head, commitment = self._foreseen
        if foreseen_commitment(head, message.salt, self._opened_shares) != commitment:
            self._masks = self._shares = None
            raise CheatingError(
                "the requester did not know what the masked rows decrypt to: her encrypted test set is malformed; "
                "no model was sent"
            )
        self._is_prepared, self._expected = True, ()
        return ()

    def _garble(self, message: TransferRequest) -> Sequence[Message]:
        """Step 5: ``z_1 = V + m + b_1``, the rest of the network, and the circuit with the predictions."""
        assert self._model is not None
        assert self._shares is not None
        bits = self.task.label_bits
        v = unpack_values(message.v, (self.task.first_width, self.task.samples))
        choices = Choices.decode(message.choices, self.task.samples * bits)
        z = centred((v + self._shares).T + self._model.biases[0])
        if int(np.abs(z).max()) > self._model.bounds()[0]:
            raise CheatingError(f"the requester's answer gives |z_1| up to {np.abs(z).max()}, beyond every model's bound")
        _, predictions = self._model.forward_from(z)
        made = garbling.garble(self._circuit, label_bits(predictions, bits), self._rng.bytes(garbling.SEED_SIZE))
        transfer = self._transfer.send(choices, made.evaluator_labels)
        self._z, self._predictions, self._garbling, self._shares = z, predictions, made, None
        self._expected = (OutputKeys,)
        return (GarbledLabels(made.public.encode(), transfer.encode()),)

    def _check(self, message: OutputKeys) -> Sequence[Message]:
        """Decodes N, checks the receipt, and asks for the zero check on ``z_1`` and on N."""
        assert self._garbling is not None
        assert self._model is not None
        assert self._commitment is not None
        assert self._z is not None
        assert self._predictions is not None
        expected = LABEL_SIZE * len(self._circuit.outputs)
        if len(message.keys) != expected:
            raise MalformedError(f"{len(message.keys)} bytes of output keys, expected {expected}")
        keys = np.frombuffer(message.keys, dtype=np.uint8).reshape(-1, LABEL_SIZE)
        correct = Correct(self._garbling.decode(keys))
        vm = Vm(self._commitment, self._garbling.public.digest, message.receipt)
        try:
            verify_receipt(self.task.requester, self.task.chain_id, self.task.task_id, self._pool, vm)
        except CryptoError as error:
            raise CheatingError(f"the requester's receipt is wrong: {error.message}") from None
        if message.receipt.output_keys_digest != keys_digest(message.keys):
            raise CheatingError("the receipt names other output keys than were returned")
        self._pending = EvaluationResult(correct, vm)
        return self._ask()

    def _ask(self) -> Sequence[Message]:
        """One zero check on ``z_1`` and on N."""
        assert self._model is not None
        assert self._z is not None
        assert self._pending is not None
        self.work_ahead()
        assert self._coins is not None
        assert self._labels is not None
        correct = self._pending.correct
        forms = evaluation_forms(self.task, self._products, self._model, self._z, self._labels, correct, self._coins)
        self._verifier = ZeroCheckVerifier(self._pk, forms, self._rng, self.transcript.head, masks=self._number_masks)
        self._checks += 1
        self._expected = (ZeroCommitments,)
        return (ZeroQueries(tuple(self._verifier.queries())),)

    def _ask_again(self) -> Sequence[Message]:
        """With other coins and masks: those of the spoiled check are used up."""
        self._coins, self._products, self._number_masks = None, [], ()
        return self._ask()

    def _conclude(self, message: ZeroOpenings) -> Sequence[Message]:
        """Chance may spoil a check (2^-26 a run): it is repeated with fresh coins, a few times, and nobody is blamed.

        Raises:
            CheatingError: the requester lied about ``z_1`` or the labels. The model must not be claimed.
            InconclusiveError: every check that the requester grants was spoiled.
        """
        assert self._verifier is not None
        try:
            verify_openings(self.task.requester, self._head_before, message)
        except CryptoError as error:
            raise CheatingError(f"the openings are not signed by the requester: {error.message}") from None
        try:
            self._verifier.conclude(message.openings)
        except InconclusiveError:
            if self._checks == EVALUATION_CHECKS:
                raise
            return self._ask_again()
        self.result = self._pending
        self._end("the evaluation is complete")
        return ()

"""``python -m bench.lying_requester --config FILE``: a requester who lies to validators in audits.

``LIE``: ``malformed``, she tells the validator who asks first the truth and all others that the body is malformed; ``values``,
she scores the model with one number of its first layer off by one. Otherwise the product's requester. In how many tasks:
bench.manifest.told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from bench.manifest.told import LIE, may_lie
from core.ids import AccountId, Correct, Digest, ModelCommitment, NodeId
from core.verification.audit_requester import AnswerBook, AuditRequester, ModelAnswer
from core.verification.messages import AuditAnswer, Message, ModelBody
from core.verification.receipt import Answer, AnswerKind, sign_answer, z_digest, z_mark
from core.verification.scored_model import count_correct, predict
from requester.__main__ import main

_reply = AuditRequester._reply
_answer = AnswerBook._answer
_told_truth: dict[bytes, NodeId] = {}
"""By task: who asked first."""


def _malformed_to_others(self: AuditRequester, message: ModelBody) -> Sequence[Message]:
    replies = _reply(self, message)
    task, opened = self.task, self._open
    assert opened is not None
    if not may_lie(task.task_id) or _told_truth.setdefault(task.task_id, self._validator) == self._validator:
        return replies
    kind, zero = AnswerKind.MALFORMED, Digest(bytes(32))
    answer = Answer(task.chain_id, task.task_id, opened.pool, opened.model_commitment, kind, zero, Correct(0))
    self._end("malformed, she says")
    return (AuditAnswer(sign_answer(self._key, answer)),)


def _one_value_off(self: AnswerBook, pool: AccountId, model_commitment: ModelCommitment, body: bytes) -> ModelAnswer:
    honest = _answer(self, pool, model_commitment, body)
    task = self._task
    if honest.model is None or not may_lie(task.task_id):
        return honest
    z = tuple(layer.copy() for layer in honest.z)
    # Towards zero, so that it stays in its range.
    z[0][0, 0] += 1 if z[0][0, 0] <= 0 else -1
    mark = z_mark(task.task_id, model_commitment, z_digest(z))
    correct = count_correct(predict(z[-1]), self._test_set.labels)
    answer = Answer(task.chain_id, task.task_id, pool, model_commitment, AnswerKind.SCORED, mark, correct)
    return ModelAnswer(sign_answer(self._key, answer), honest.model, z)


if __name__ == "__main__":
    if os.environ[LIE] == "malformed":
        AuditRequester._reply = _malformed_to_others  # type: ignore[method-assign]
    else:
        AnswerBook._answer = _one_value_off  # type: ignore[method-assign]
    sys.exit(main())

"""The answer to several transactions that were handed in at once, as a checked pair (see convert_chain)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pofl.chain.v1 import chain_pb2 as pb

from core.chain.transaction import SignedTransaction
from core.errors import MalformedError, TransactionError
from core.ids import TxId

__all__ = ["results_from_proto", "results_to_proto"]

MAX_MESSAGE: Final = 1_000
MAX_REASON: Final = 64


def results_to_proto(
    transactions: Sequence[SignedTransaction], refusals: Sequence[TransactionError | None]
) -> pb.SubmitTransactionsResponse:
    results = []
    for transaction, refusal in zip(transactions, refusals, strict=True):
        result = pb.SubmitTransactionsResponse.Result(tx_id=transaction.tx_id)
        if refusal is not None:
            result.refusal, result.message = refusal.reason[:MAX_REASON], refusal.message[:MAX_MESSAGE]
        results.append(result)
    return pb.SubmitTransactionsResponse(results=results)


def results_from_proto(message: pb.SubmitTransactionsResponse, expected: Sequence[TxId]) -> tuple[TransactionError | None, ...]:
    """Why each was refused, or None; ``expected``: what was handed in."""
    if [result.tx_id for result in message.results] != list(expected):
        raise MalformedError("the answer is about other transactions than were handed in", field="results")
    return tuple(
        TransactionError(result.message[:MAX_MESSAGE], result.refusal[:MAX_REASON]) if result.refusal else None
        for result in message.results
    )

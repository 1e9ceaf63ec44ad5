"""chain.proto <-> services.rpc.views, a checked pair per message.

``*_to_proto`` trusts its argument. ``*_from_proto`` raises MalformedError or LimitError and names the field. Blocks, tasks and
trades have files of their own; who speaks chain.proto finds all of it here.
"""

from __future__ import annotations

from pofl.chain.v1 import chain_pb2 as pb

from core.chain.block import Certificate
from core.codec import decode, encode
from core.errors import MalformedError
from core.ids import (
    AccountId,
    BlockHash,
    Correct,
    Digest,
    Height,
    Milliseconds,
    ModelCommitment,
    NodeId,
    PartsPerMillion,
    StateRoot,
    TaskId,
)
from services.rpc.convert_block import (
    MAX_CERTIFICATE,
    block_from_proto,
    block_to_proto,
)
from services.rpc.convert_fields import amount, exact, instant, optional, small, version
from services.rpc.convert_task import (
    activation_from_proto,
    activation_to_proto,
    claims_from_proto,
    claims_to_proto,
    phase_to_proto,
    spec_from_proto,
    spec_to_proto,
    task_from_proto,
    task_to_proto,
)
from services.rpc.convert_trade import (
    market_from_proto,
    market_to_proto,
    provider_from_proto,
    provider_to_proto,
    trade_from_proto,
    trade_to_proto,
)
from services.rpc.views import (
    AccountView,
    Explanation,
    Tip,
    TransactionStatus,
    TranscriptView,
    TxStatus,
    ValidatorView,
    VerdictView,
)

__all__ = [
    "account_from_proto", "account_to_proto", "activation_from_proto", "activation_to_proto", "block_from_proto",
    "block_to_proto", "claims_from_proto", "claims_to_proto", "exact", "explanation_from_proto", "explanation_to_proto",
    "market_from_proto", "market_to_proto", "phase_to_proto", "provider_from_proto", "provider_to_proto", "spec_from_proto",
    "spec_to_proto", "task_from_proto", "task_to_proto", "tip_from_proto", "tip_to_proto", "trade_from_proto",
    "trade_to_proto", "tx_status_from_proto", "tx_status_to_proto", "validator_from_proto", "validator_to_proto",
]  # fmt: skip


def tip_to_proto(tip: Tip) -> pb.GetTipResponse:
    return pb.GetTipResponse(
        height=tip.height,
        block_hash=tip.block_hash,
        state_root=tip.state_root,
        certificate=encode(tip.certificate) if tip.certificate is not None else b"",
        next_time_ms=tip.next_time_ms,
        current_task_id=tip.current_task or b"",
        work_height=tip.work_height,
        supply=tip.supply,
        burned=tip.burned,
        peers=tip.peers,
        mempool=tip.mempool,
        protocol_version=tip.protocol_version,
    )


def tip_from_proto(message: pb.GetTipResponse) -> Tip:
    task = optional("current_task_id", message.current_task_id)
    return Tip(
        height=Height(message.height),
        block_hash=BlockHash(exact("block_hash", message.block_hash)),
        state_root=StateRoot(exact("state_root", message.state_root)),
        certificate=decode(Certificate, message.certificate, MAX_CERTIFICATE) if message.certificate else None,
        next_time_ms=Milliseconds(message.next_time_ms),
        current_task=TaskId(task) if task is not None else None,
        work_height=message.work_height,
        supply=amount("supply", message.supply),
        burned=amount("burned", message.burned),
        peers=message.peers,
        mempool=message.mempool,
        protocol_version=version(message.protocol_version),
    )


def validator_to_proto(view: ValidatorView) -> pb.ValidatorView:
    return pb.ValidatorView(
        node_id=view.node_id, power=view.power, next_power=view.next_power, bond=view.bond, endpoint=view.endpoint,
        since_height=view.since_height, release_ms=view.release_ms or 0, has_equivocated=view.has_equivocated,
        name=view.name,
    )  # fmt: skip


def validator_from_proto(message: pb.ValidatorView) -> ValidatorView:
    return ValidatorView(
        NodeId(exact("node_id", message.node_id)), message.power, message.next_power, amount("bond", message.bond),
        message.endpoint, Height(message.since_height), instant(message.release_ms), message.has_equivocated, message.name,
    )  # fmt: skip


def account_to_proto(view: AccountView) -> pb.GetAccountResponse:
    return pb.GetAccountResponse(
        balance=view.balance, next_nonce=view.next_nonce, reputation_ppm=view.reputation_ppm, name=view.name,
        height=view.height,
    )  # fmt: skip


def account_from_proto(message: pb.GetAccountResponse) -> AccountView:
    return AccountView(
        balance=amount("balance", message.balance),
        next_nonce=message.next_nonce,
        reputation_ppm=PartsPerMillion(small("reputation_ppm", message.reputation_ppm, 1_000_000)),
        name=message.name,
        height=Height(message.height),
    )


def tx_status_to_proto(status: TransactionStatus) -> pb.GetTransactionResponse:
    return pb.GetTransactionResponse(
        status=pb.TransactionStatus.ValueType(status.status), height=status.height or 0, reason=status.reason
    )


def tx_status_from_proto(message: pb.GetTransactionResponse) -> TransactionStatus:
    try:
        status = TxStatus(message.status)
    except ValueError:
        raise MalformedError(f"status: unknown value {message.status}", field="status") from None
    return TransactionStatus(status, Height(message.height) if message.height else None, message.reason)


def verdict_to_proto(view: VerdictView) -> pb.VerdictView:
    return pb.VerdictView(
        validator=view.validator, pool=view.pool, model_commitment=view.model_commitment, kind=view.kind,
        correct=view.correct, reason=view.reason, audit_ms=view.audit_ms,
    )  # fmt: skip


def verdict_from_proto(message: pb.VerdictView) -> VerdictView:
    return VerdictView(
        validator=NodeId(exact("validator", message.validator)),
        pool=AccountId(exact("pool", message.pool)),
        model_commitment=ModelCommitment(exact("model_commitment", message.model_commitment)),
        kind=message.kind,
        correct=Correct(message.correct),
        reason=message.reason,
        audit_ms=message.audit_ms,
    )


def explanation_to_proto(view: Explanation) -> pb.ExplainResponse:
    return pb.ExplainResponse(
        block=block_to_proto(view.block),
        task=task_to_proto(view.task) if view.task is not None else None,
        verdicts=[verdict_to_proto(v) for v in view.verdicts],
        lines=view.lines,
        vm_bytes=view.vm_bytes,
        transcripts=[
            pb.TranscriptView(
                digest=t.digest, validator=t.validator, purpose=t.purpose, task_id=t.task_id,
                model_commitment=t.model_commitment or b"", size=t.size, head=t.head, result=t.result,
            )
            for t in view.transcripts
        ],
        contradictions=[pb.ContradictionView(first=first, second=second) for first, second in view.contradictions],
        took_part=view.took_part,
    )  # fmt: skip


def transcript_from_proto(message: pb.TranscriptView) -> TranscriptView:
    commitment = optional("model_commitment", message.model_commitment)
    return TranscriptView(
        digest=Digest(exact("digest", message.digest)),
        validator=NodeId(exact("validator", message.validator)),
        purpose=message.purpose,
        task_id=TaskId(exact("task_id", message.task_id)),
        model_commitment=None if commitment is None else ModelCommitment(commitment),
        size=message.size,
        head=Digest(exact("head", message.head)),
        result=message.result,
    )


def explanation_from_proto(message: pb.ExplainResponse) -> Explanation:
    return Explanation(
        block=block_from_proto(message.block),
        task=task_from_proto(message.task) if message.HasField("task") else None,
        verdicts=tuple(verdict_from_proto(v) for v in message.verdicts),
        lines=tuple(message.lines),
        vm_bytes=message.vm_bytes,
        transcripts=tuple(transcript_from_proto(t) for t in message.transcripts),
        contradictions=tuple((c.first, c.second) for c in message.contradictions),
        took_part=message.took_part,
    )

"""chain.proto <-> services.rpc.views, a checked pair per message.

``*_to_proto`` trusts its argument. ``*_from_proto`` raises MalformedError or LimitError and names the field.
"""

from __future__ import annotations

from pofl.chain.v1 import chain_pb2 as pb

from core.chain.block import (
    MAX_BODY,
    MAX_HEADER,
    Block,
    BlockKind,
    Certificate,
    Header,
    Payout,
    Receipt,
    SignedHeader,
    Vm,
)
from core.chain.transaction import Activation, TaskSpec
from core.codec import decode, encode
from core.errors import LimitError, MalformedError
from core.ids import (
    AccountId,
    Amount,
    BlockHash,
    Correct,
    Digest,
    Height,
    Milliseconds,
    ModelCommitment,
    NodeId,
    PartsPerMillion,
    Signature,
    StateRoot,
    TaskId,
    TxId,
)
from core.market.marks import MARKS
from services.rpc.views import (
    AccountView,
    BlockView,
    ClaimsView,
    ClaimView,
    EntryView,
    Explanation,
    LeakReportView,
    MarketView,
    ProviderView,
    ReportOutcome,
    TaskPhase,
    TaskView,
    Tip,
    TradePhase,
    TradeView,
    TransactionStatus,
    TransactionView,
    TranscriptView,
    TxStatus,
    ValidatorView,
    VerdictView,
)

__all__ = [
    "claims_from_proto", "claims_to_proto", "validator_from_proto", "validator_to_proto",
    "account_from_proto", "account_to_proto", "activation_from_proto", "activation_to_proto", "block_from_proto",
    "block_to_proto", "exact", "explanation_from_proto", "explanation_to_proto", "market_from_proto",
    "market_to_proto", "phase_to_proto", "provider_from_proto", "provider_to_proto", "spec_from_proto",
    "spec_to_proto", "task_from_proto", "task_to_proto", "tip_from_proto", "tip_to_proto", "trade_from_proto",
    "trade_to_proto", "tx_status_from_proto", "tx_status_to_proto",
]  # fmt: skip

MAX_CERTIFICATE = 64 * 1024


def exact(name: str, value: bytes, size: int = 32) -> bytes:
    """``value`` if it has ``size`` bytes."""
    if len(value) != size:
        raise MalformedError(f"{name}: {len(value)} bytes, expected {size}", field=name)
    return value


def _optional(name: str, value: bytes) -> bytes | None:
    return exact(name, value) if value else None


def _small(name: str, value: int, limit: int) -> int:
    if value > limit:
        raise LimitError(f"{name}: {value}, at most {limit}", field=name)
    return value


def _version(value: int) -> int:
    if value < 1:
        raise MalformedError("protocol_version: 0, and versions begin with 1: the node is too old", field="protocol_version")
    return _small("protocol_version", value, 65_535)


def _amount(name: str, value: int) -> Amount:
    if value < 0:
        raise MalformedError(f"{name}: {value} is negative", field=name)
    return Amount(value)


def certificate_to_proto(certificate: Certificate) -> pb.CertificateView:
    return pb.CertificateView(
        height=certificate.height,
        round=certificate.round,
        block_hash=certificate.block_hash,
        signatures=[
            pb.CommitSignature(validator=s.validator, time_ms=s.time_ms, signature=s.signature)
            for s in certificate.signatures
        ],
        encoded=encode(certificate),
    )


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
    task = _optional("current_task_id", message.current_task_id)
    return Tip(
        height=Height(message.height),
        block_hash=BlockHash(exact("block_hash", message.block_hash)),
        state_root=StateRoot(exact("state_root", message.state_root)),
        certificate=decode(Certificate, message.certificate, MAX_CERTIFICATE) if message.certificate else None,
        next_time_ms=Milliseconds(message.next_time_ms),
        current_task=TaskId(task) if task is not None else None,
        work_height=message.work_height,
        supply=_amount("supply", message.supply),
        burned=_amount("burned", message.burned),
        peers=message.peers,
        mempool=message.mempool,
        protocol_version=_version(message.protocol_version),
    )


def vm_to_proto(vm: Vm) -> pb.Vm:
    return pb.Vm(
        model_commitment=vm.model_commitment,
        garbled_circuit_digest=vm.garbled_circuit_digest,
        receipt=pb.Receipt(output_keys_digest=vm.receipt.output_keys_digest, signature=vm.receipt.signature),
    )


def vm_from_proto(message: pb.Vm) -> Vm:
    return Vm(
        model_commitment=ModelCommitment(exact("vm.model_commitment", message.model_commitment)),
        garbled_circuit_digest=Digest(exact("vm.garbled_circuit_digest", message.garbled_circuit_digest)),
        receipt=Receipt(
            output_keys_digest=Digest(exact("vm.receipt.output_keys_digest", message.receipt.output_keys_digest)),
            signature=Signature(exact("vm.receipt.signature", message.receipt.signature, 64)),
        ),
    )


def header_to_proto(header: Header) -> pb.HeaderView:
    view = pb.HeaderView(
        version=header.version,
        chain_id=header.chain_id,
        height=header.height,
        prev_hash=header.prev_hash,
        merkle_root=header.merkle_root,
        parent_state_root=header.parent_state_root,
        timestamp_ms=header.timestamp_ms,
        kind=_KINDS[header.kind],
        task_id=header.task_id or b"",
        outcome=[
            pb.Outcome(model_commitment=o.model_commitment, kind=pb.OutcomeKind.ValueType(o.kind)) for o in header.outcome
        ],
        author_id=header.author_id,
    )
    if header.accuracy is not None:
        view.accuracy.CopyFrom(pb.Accuracy(correct=header.accuracy.correct, total=header.accuracy.total))
    if header.vm is not None:
        view.vm.CopyFrom(vm_to_proto(header.vm))
    return view


_KINDS = {
    BlockKind.TRANSACTION: pb.BLOCK_KIND_TRANSACTION,
    BlockKind.WORK: pb.BLOCK_KIND_WORK,
    BlockKind.VOID: pb.BLOCK_KIND_VOID,
}


def transaction_to_proto(view: TransactionView) -> pb.TransactionView:
    return pb.TransactionView(
        tx_id=view.tx_id, sender=view.sender, nonce=view.nonce, fee=view.fee, kind=view.kind,
        details_json=view.details_json, encoded=view.encoded,
    )  # fmt: skip


def transaction_from_proto(message: pb.TransactionView) -> TransactionView:
    return TransactionView(
        tx_id=TxId(exact("tx_id", message.tx_id)),
        sender=AccountId(exact("sender", message.sender)),
        nonce=message.nonce,
        fee=_amount("fee", message.fee),
        kind=message.kind,
        details_json=message.details_json,
        encoded=message.encoded,
    )


def block_to_proto(view: BlockView) -> pb.BlockView:
    return pb.BlockView(
        block_hash=view.block_hash,
        header=header_to_proto(view.header),
        header_bytes=view.block.header.header,
        author_signature=view.block.header.signature,
        payouts=[pb.Payout(account=p.account, amount=p.amount) for p in view.payouts],
        transactions=[transaction_to_proto(t) for t in view.transactions],
        body_bytes=view.block.body,
        certificate=certificate_to_proto(view.certificate),
        state_root=view.state_root,
    )


def block_from_proto(message: pb.BlockView) -> BlockView:
    """The header is decoded from its bytes, and the hash recomputed: the decoded view of the server is not trusted."""
    if len(message.header_bytes) > MAX_HEADER or len(message.body_bytes) > MAX_BODY:
        raise LimitError("block: header or body over its limit")
    signed = SignedHeader(message.header_bytes, Signature(exact("author_signature", message.author_signature, 64)))
    if signed.block_hash != message.block_hash:
        raise MalformedError("block_hash is not the hash of header_bytes")
    block = Block(signed, message.body_bytes)
    return BlockView(
        block=block,
        header=signed.decoded(),
        payouts=tuple(
            Payout(AccountId(exact("payout.account", p.account)), _amount("payout.amount", p.amount)) for p in message.payouts
        ),
        transactions=tuple(transaction_from_proto(t) for t in message.transactions),
        certificate=decode(Certificate, message.certificate.encoded, MAX_CERTIFICATE),
        state_root=StateRoot(exact("state_root", message.state_root)),
    )


_ACTIVATIONS = {
    Activation.IDENTITY: pb.ACTIVATION_IDENTITY,
    Activation.SIGMOID: pb.ACTIVATION_SIGMOID,
    Activation.RELU: pb.ACTIVATION_RELU,
}


def activation_from_proto(value: pb.Activation.ValueType) -> Activation:
    for activation, number in _ACTIVATIONS.items():
        if number == value:
            return activation
    raise MalformedError(f"activation: unknown value {value}", field="activation")


def phase_to_proto(value: TaskPhase) -> pb.TaskPhase.ValueType:
    return pb.TaskPhase.ValueType(value)


def activation_to_proto(value: Activation) -> pb.Activation.ValueType:
    return _ACTIVATIONS[value]


def spec_to_proto(spec: TaskSpec) -> pb.TaskSpec:
    return pb.TaskSpec(
        name=spec.name,
        features=spec.features,
        classes=spec.classes,
        samples=spec.samples,
        hidden=spec.hidden,
        activation=_ACTIVATIONS[spec.activation],
        weight_bits=spec.weight_bits,
        feature_scale_micro=spec.feature_scale_micro,
        test_root=spec.test_root,
        test_blobs=spec.test_blobs,
        public_key_blob=spec.public_key_blob,
        practice_blob=spec.practice_blob,
        endpoint=spec.endpoint,
        leak_bits=spec.leak_bits,
        cuts_micro=spec.cuts_micro,
    )


def spec_from_proto(message: pb.TaskSpec) -> TaskSpec:
    spec = TaskSpec(
        name=message.name,
        features=message.features,
        classes=message.classes,
        samples=message.samples,
        hidden=tuple(message.hidden),
        activation=activation_from_proto(message.activation),
        weight_bits=message.weight_bits,
        feature_scale_micro=message.feature_scale_micro,
        test_root=Digest(exact("test_root", message.test_root)),
        test_blobs=tuple(Digest(exact("test_blobs", b)) for b in message.test_blobs),
        public_key_blob=Digest(exact("public_key_blob", message.public_key_blob)),
        practice_blob=Digest(exact("practice_blob", message.practice_blob)),
        endpoint=message.endpoint,
        leak_bits=message.leak_bits,
        cuts_micro=tuple(message.cuts_micro),
    )
    encode(spec)  # the codec's limits are the limits
    return spec


def entry_to_proto(entry: EntryView) -> pb.Entry:
    return pb.Entry(
        pool=entry.pool,
        bond=entry.bond,
        endpoint=entry.endpoint,
        model_commitment=entry.model_commitment or b"",
        correct=entry.correct,
        vm=vm_to_proto(entry.vm) if entry.vm is not None else None,
    )


def entry_from_proto(message: pb.Entry) -> EntryView:
    commitment = _optional("entry.model_commitment", message.model_commitment)
    return EntryView(
        pool=AccountId(exact("entry.pool", message.pool)),
        bond=_amount("entry.bond", message.bond),
        endpoint=message.endpoint,
        model_commitment=ModelCommitment(commitment) if commitment is not None else None,
        correct=Correct(message.correct) if message.HasField("correct") else None,
        vm=vm_from_proto(message.vm) if message.HasField("vm") else None,
    )


def task_to_proto(task: TaskView) -> pb.TaskView:
    return pb.TaskView(
        task_id=task.task_id,
        requester=task.requester,
        spec=spec_to_proto(task.spec),
        reward=task.reward,
        bond=task.bond,
        min_pool_bond=task.min_pool_bond,
        task_nonce=task.task_nonce,
        published_height=task.published_height,
        phase=phase_to_proto(task.phase),
        stored_by=task.stored_by,
        start_ms=task.start_ms or 0,
        entry_close_ms=task.entry_close_ms or 0,
        commit_close_ms=task.commit_close_ms or 0,
        claim_close_ms=task.claim_close_ms or 0,
        entries=[entry_to_proto(e) for e in task.entries],
        ended_height=task.ended_height or 0,
        winner=task.winner or b"",
        expires_ms=task.expires_ms,
    )


def _instant(value: int) -> Milliseconds | None:
    return Milliseconds(value) if value else None


def task_from_proto(message: pb.TaskView) -> TaskView:
    try:
        phase = TaskPhase(message.phase)
    except ValueError:
        raise MalformedError(f"phase: unknown value {message.phase}", field="phase") from None
    winner = _optional("winner", message.winner)
    return TaskView(
        task_id=TaskId(exact("task_id", message.task_id)),
        requester=AccountId(exact("requester", message.requester)),
        spec=spec_from_proto(message.spec),
        reward=_amount("reward", message.reward),
        bond=_amount("bond", message.bond),
        min_pool_bond=_amount("min_pool_bond", message.min_pool_bond),
        task_nonce=exact("task_nonce", message.task_nonce),
        published_height=Height(message.published_height),
        phase=phase,
        expires_ms=Milliseconds(message.expires_ms),
        stored_by=tuple(NodeId(exact("stored_by", n)) for n in message.stored_by),
        start_ms=_instant(message.start_ms),
        entry_close_ms=_instant(message.entry_close_ms),
        commit_close_ms=_instant(message.commit_close_ms),
        claim_close_ms=_instant(message.claim_close_ms),
        entries=tuple(entry_from_proto(e) for e in message.entries),
        ended_height=Height(message.ended_height) if message.ended_height else None,
        winner=AccountId(winner) if winner is not None else None,
    )


def claims_to_proto(view: ClaimsView) -> pb.WatchClaimsResponse:
    claims = [pb.ClaimView(task_id=c.task_id, pool=c.pool, correct=c.correct, vm=vm_to_proto(c.vm)) for c in view.claims]
    return pb.WatchClaimsResponse(height=view.height, block_time_ms=view.block_time_ms, claims=claims)


def claims_from_proto(message: pb.WatchClaimsResponse) -> ClaimsView:
    claims = tuple(
        ClaimView(
            TaskId(exact("task_id", c.task_id)), AccountId(exact("pool", c.pool)), Correct(c.correct), vm_from_proto(c.vm)
        )
        for c in message.claims
    )
    return ClaimsView(Height(message.height), Milliseconds(message.block_time_ms), claims)


def validator_to_proto(view: ValidatorView) -> pb.ValidatorView:
    return pb.ValidatorView(
        node_id=view.node_id, power=view.power, next_power=view.next_power, bond=view.bond, endpoint=view.endpoint,
        since_height=view.since_height, release_ms=view.release_ms or 0, has_equivocated=view.has_equivocated,
        name=view.name,
    )  # fmt: skip


def validator_from_proto(message: pb.ValidatorView) -> ValidatorView:
    return ValidatorView(
        NodeId(exact("node_id", message.node_id)), message.power, message.next_power, _amount("bond", message.bond),
        message.endpoint, Height(message.since_height), _instant(message.release_ms), message.has_equivocated, message.name,
    )  # fmt: skip


def account_to_proto(view: AccountView) -> pb.GetAccountResponse:
    return pb.GetAccountResponse(
        balance=view.balance, next_nonce=view.next_nonce, reputation_ppm=view.reputation_ppm, name=view.name,
        height=view.height,
    )  # fmt: skip


def account_from_proto(message: pb.GetAccountResponse) -> AccountView:
    return AccountView(
        balance=_amount("balance", message.balance),
        next_nonce=message.next_nonce,
        reputation_ppm=PartsPerMillion(_small("reputation_ppm", message.reputation_ppm, 1_000_000)),
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


def provider_to_proto(view: ProviderView) -> pb.ProviderView:
    return pb.ProviderView(
        provider=view.provider, data_root=view.data_root, rows=view.rows, endpoint=view.endpoint
    )


def provider_from_proto(message: pb.ProviderView) -> ProviderView:
    return ProviderView(
        provider=AccountId(exact("provider", message.provider)),
        data_root=Digest(exact("data_root", message.data_root)),
        rows=message.rows,
        endpoint=message.endpoint,
    )


def trade_to_proto(view: TradeView) -> pb.TradeView:
    return pb.TradeView(
        trade_id=view.trade_id,
        provider=view.provider,
        pool=view.pool,
        data_root=view.data_root,
        bid=view.bid,
        markup=view.markup,
        p_ppm=view.p_ppm,
        reputation_ppm=view.reputation_ppm,
        phase=pb.TradePhase.ValueType(view.phase),
        bid_height=view.bid_height,
        draw_height=view.draw_height or 0,
        miners=view.miners,
        chunks_total=view.chunks_total,
        chunks_delivered=view.chunks_delivered,
        delivery_deadline_ms=view.delivery_deadline_ms or 0,
        rows=view.rows,
        marks=view.marks,
        reports=[_report_to_proto(report) for report in view.reports],
        is_leaked=view.is_leaked,
    )


def _report_to_proto(view: LeakReportView) -> pb.LeakReport:
    return pb.LeakReport(
        miner=view.miner, outcome=pb.ReportOutcome.ValueType(view.outcome), found=view.found, agreeing=view.agreeing,
        copy=view.copy, height=view.height, deadline_ms=view.deadline_ms,
    )  # fmt: skip


def _report_from_proto(message: pb.LeakReport) -> LeakReportView:
    try:
        outcome = ReportOutcome(message.outcome)
    except ValueError:
        raise MalformedError(f"outcome: unknown value {message.outcome}", field="outcome") from None
    return LeakReportView(
        miner=AccountId(exact("reports.miner", message.miner)),
        outcome=outcome,
        found=_small("reports.found", message.found, MARKS),
        agreeing=_small("reports.agreeing", message.agreeing, MARKS),
        copy=Digest(exact("reports.copy", message.copy)),
        height=Height(message.height),
        deadline_ms=Milliseconds(message.deadline_ms),
    )


def trade_from_proto(message: pb.TradeView) -> TradeView:
    try:
        phase = TradePhase(message.phase)
    except ValueError:
        raise MalformedError(f"phase: unknown value {message.phase}", field="phase") from None
    return TradeView(
        trade_id=Digest(exact("trade_id", message.trade_id)),
        provider=AccountId(exact("provider", message.provider)),
        pool=AccountId(exact("pool", message.pool)),
        data_root=Digest(exact("data_root", message.data_root)),
        bid=_amount("bid", message.bid),
        markup=_amount("markup", message.markup),
        p_ppm=PartsPerMillion(_small("p_ppm", message.p_ppm, 1_000_000)),
        reputation_ppm=PartsPerMillion(_small("reputation_ppm", message.reputation_ppm, 1_000_000)),
        phase=phase,
        bid_height=Height(message.bid_height),
        draw_height=Height(message.draw_height) if message.draw_height else None,
        miners=tuple(AccountId(exact("miners", m)) for m in message.miners),
        chunks_total=message.chunks_total,
        chunks_delivered=message.chunks_delivered,
        delivery_deadline_ms=_instant(message.delivery_deadline_ms),
        rows=message.rows,
        marks=tuple(Digest(exact("marks", m)) for m in message.marks),
        reports=tuple(_report_from_proto(report) for report in message.reports),
        is_leaked=message.is_leaked,
    )


def market_to_proto(view: MarketView) -> pb.GetMarketResponse:
    return pb.GetMarketResponse(
        height=view.height, bid_high=view.bid_high, markup_high=view.markup_high,
        pool_reputation_ppm=view.pool_reputation_ppm,
    )  # fmt: skip


def market_from_proto(message: pb.GetMarketResponse) -> MarketView:
    return MarketView(
        height=Height(message.height),
        bid_high=_amount("bid_high", message.bid_high),
        markup_high=_amount("markup_high", message.markup_high),
        pool_reputation_ppm=PartsPerMillion(_small("pool_reputation_ppm", message.pool_reputation_ppm, 1_000_000)),
    )


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
    commitment = _optional("model_commitment", message.model_commitment)
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

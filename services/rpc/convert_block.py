"""Blocks, headers and transactions of chain.proto <-> services.rpc.views (see convert_chain)."""

from __future__ import annotations

from pofl.chain.v1 import chain_pb2 as pb

from core.chain.block import MAX_BODY, MAX_HEADER, Block, BlockKind, Certificate, Header, Payout, Receipt, SignedHeader, Vm
from core.codec import decode, encode
from core.errors import LimitError, MalformedError
from core.ids import AccountId, Digest, ModelCommitment, Signature, StateRoot, TxId
from services.rpc.convert_fields import amount, exact
from services.rpc.views import BlockView, TransactionView

__all__ = [
    "MAX_CERTIFICATE", "block_from_proto", "block_to_proto", "certificate_to_proto", "header_to_proto",
    "transaction_from_proto", "transaction_to_proto", "vm_from_proto", "vm_to_proto",
]  # fmt: skip

MAX_CERTIFICATE = 64 * 1024


def certificate_to_proto(certificate: Certificate) -> pb.CertificateView:
    return pb.CertificateView(
        height=certificate.height,
        round=certificate.round,
        block_hash=certificate.block_hash,
        signatures=[
            pb.CommitSignature(validator=s.validator, time_ms=s.time_ms, signature=s.signature) for s in certificate.signatures
        ],
        encoded=encode(certificate),
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
        fee=amount("fee", message.fee),
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
            Payout(AccountId(exact("payout.account", p.account)), amount("payout.amount", p.amount)) for p in message.payouts
        ),
        transactions=tuple(transaction_from_proto(t) for t in message.transactions),
        certificate=decode(Certificate, message.certificate.encoded, MAX_CERTIFICATE),
        state_root=StateRoot(exact("state_root", message.state_root)),
    )

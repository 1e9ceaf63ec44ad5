"""Tasks, their entries and claims of chain.proto <-> services.rpc.views (see convert_chain)."""

from __future__ import annotations

from pofl.chain.v1 import chain_pb2 as pb

from core.chain.transaction import Activation, TaskSpec
from core.codec import encode
from core.endpoint import check_endpoint
from core.errors import MalformedError
from core.ids import AccountId, Correct, Digest, Height, Milliseconds, ModelCommitment, NodeId, TaskId
from services.rpc.convert_block import vm_from_proto, vm_to_proto
from services.rpc.convert_fields import amount, exact, instant, optional
from services.rpc.views import ClaimsView, ClaimView, EntryView, TaskPhase, TaskView

__all__ = [
    "activation_from_proto", "activation_to_proto", "claims_from_proto", "claims_to_proto", "entry_from_proto",
    "entry_to_proto", "phase_to_proto", "spec_from_proto", "spec_to_proto", "task_from_proto", "task_to_proto",
]  # fmt: skip

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


def activation_to_proto(value: Activation) -> pb.Activation.ValueType:
    return _ACTIVATIONS[value]


def phase_to_proto(value: TaskPhase) -> pb.TaskPhase.ValueType:
    return pb.TaskPhase.ValueType(value)


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
    commitment = optional("entry.model_commitment", message.model_commitment)
    return EntryView(
        pool=AccountId(exact("entry.pool", message.pool)),
        bond=amount("entry.bond", message.bond),
        endpoint=check_endpoint(message.endpoint, "entry.endpoint"),
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


def task_from_proto(message: pb.TaskView) -> TaskView:
    try:
        phase = TaskPhase(message.phase)
    except ValueError:
        raise MalformedError(f"phase: unknown value {message.phase}", field="phase") from None
    winner = optional("winner", message.winner)
    return TaskView(
        task_id=TaskId(exact("task_id", message.task_id)),
        requester=AccountId(exact("requester", message.requester)),
        spec=spec_from_proto(message.spec),
        reward=amount("reward", message.reward),
        bond=amount("bond", message.bond),
        min_pool_bond=amount("min_pool_bond", message.min_pool_bond),
        task_nonce=exact("task_nonce", message.task_nonce),
        published_height=Height(message.published_height),
        phase=phase,
        expires_ms=Milliseconds(message.expires_ms),
        stored_by=tuple(NodeId(exact("stored_by", n)) for n in message.stored_by),
        start_ms=instant(message.start_ms),
        entry_close_ms=instant(message.entry_close_ms),
        commit_close_ms=instant(message.commit_close_ms),
        claim_close_ms=instant(message.claim_close_ms),
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

"""What a user's certificate allows: to read, to submit transactions, to operate a process in its owner's name.

A certificate of role ``user`` may name scopes, as URIs ``pofl://scope/<scope>``. One that names none has all of them, as
those have that `pofl testnet` makes. Every method that a user may call belongs to one scope here; what is not listed is refused
to users (docs/adr/0125).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from core.errors import AuthError

__all__ = ["METHODS", "Scope", "check_scope"]


class Scope(Enum):
    """Each allows its own methods only."""

    READ = "read"
    """What the chain, a pool's books and a process's progress say."""
    SUBMIT = "submit"
    """Hand in signed transactions; the network's limits of one caller are used up by it."""
    OPERATE = "operate"
    """Spend the process owner's money, and fetch what only the owner should have."""


def _listed(scope: Scope, service: str, *methods: str) -> dict[str, Scope]:
    return {f"{service}/{method}": scope for method in methods}


METHODS: Final[Mapping[str, Scope]] = MappingProxyType(
    _listed(
        Scope.READ, "pofl.chain.v1.ChainService",
        "GetGenesis", "GetTip", "GetBlock", "WatchBlocks", "GetTransaction", "GetAccount", "ListTasks", "GetTask", "WatchTasks",
        "ListProviders", "GetTrade", "ListTrades", "GetMarket", "ListValidators", "GetLightBlock", "GetProof", "WatchClaims",
        "Explain", "GetTranscript",
    )
    | _listed(Scope.SUBMIT, "pofl.chain.v1.ChainService", "SubmitTransaction", "SubmitTransactions")
    | _listed(Scope.READ, "pofl.task.v1.PlatformService", "ListTasks", "GetTask", "GetCurrentTask", "WatchTasks")
    | _listed(Scope.SUBMIT, "pofl.task.v1.PlatformService", "SubmitTask")
    | _listed(Scope.READ, "pofl.task.v1.RequesterService", "ListOwnTasks", "WatchActivity")
    | _listed(Scope.OPERATE, "pofl.task.v1.RequesterService", "PublishTask", "FetchModel")
    | _listed(
        Scope.READ, "pofl.mining.v1.PoolService", "ListMembers", "ListContributions", "ListMinedTasks", "WatchProgress"
    )
    | _listed(Scope.READ, "pofl.mining.v1.MinerService", "GetStatus")
    | _listed(Scope.READ, "pofl.market.v1.ProviderService", "ListDataSets")
    | _listed(Scope.READ, "pofl.blob.v1.BlobService", "Stat", "Read")
    | _listed(Scope.READ, "pofl.admin.v1.IdentityService", "Handshake")
    | _listed(Scope.READ, "grpc.health.v1.Health", "Check", "Watch", "List")
    | _listed(Scope.READ, "grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo")
)  # fmt: skip


def check_scope(method: str, scopes: frozenset[str] | None) -> None:
    """``method`` as ``service/Method``; ``scopes`` of a user's certificate, None for all. Raises AuthError."""
    needed = METHODS.get(method)
    if needed is None:
        raise AuthError(f"{method} belongs to no scope: users may not call it", method=method)
    if scopes is not None and needed.value not in scopes:
        have = ", ".join(sorted(scopes))
        raise AuthError(
            f"{method} needs the scope {needed.value}, your certificate has {have}: ask for one with `pofl keys issue-user`",
            method=method, scope=needed.value,
        )  # fmt: skip

"""Which rules a height follows, and how validators agree on new ones (docs/adr/0076).

Software knows a set of versions. 2/3 of the power agree on a height from which the next version holds; a node that does
not know it stops before that height, with a sentence, and never votes or follows by other rules than the chain's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from core.chain.rules_validators import check_approvals
from core.chain.state import State, Upgrade
from core.chain.transaction import Refusal, ScheduleUpgrade
from core.errors import TransactionError, WrongChainError
from core.ids import Height

__all__ = ["KNOWN_VERSIONS", "advance", "check_known", "check_known_version", "schedule", "version_at"]

KNOWN_VERSIONS: Final = frozenset({1})
"""What this software can execute. A release that changes a rule adds its number, and keeps the old rules."""


def version_at(state: State, height: int) -> int:
    """The version of the rules that a block of ``height``, after ``state``, follows; the header names it."""
    upgrade = state.upgrade
    return upgrade.version if upgrade is not None and height >= upgrade.height else state.version


def check_known(state: State) -> None:
    """Raises WrongChainError, which says what to do, if this software cannot decide or follow the next height."""
    height = state.height + 1
    version = version_at(state, height)
    if version not in KNOWN_VERSIONS:
        raise WrongChainError(
            f"from height {height} on this chain follows protocol version {version}; this software knows up to "
            f"{max(KNOWN_VERSIONS)}. It has stopped at height {state.height} and loses nothing: install a release that "
            f"knows version {version} and start it again",
            height=height, version=version,
        )  # fmt: skip


def check_known_version(version: int, height: int) -> None:
    """For a role that builds blocks and is no node. Raises WrongChainError, which says what to do."""
    if version not in KNOWN_VERSIONS:
        raise WrongChainError(
            f"height {height} follows protocol version {version}; this software knows up to {max(KNOWN_VERSIONS)}: install a "
            f"release that knows version {version}",
            height=height, version=version,
        )  # fmt: skip


def schedule(state: State, payload: ScheduleUpgrade, height: Height) -> State:
    """ScheduleUpgrade: the next version from ``payload.height`` on. Again before that height: postpones it. Raises
    TransactionError."""
    least = height + state.params.upgrade_notice
    for ok, reason, problem in (
        (payload.version == state.version + 1, Refusal.OUT_OF_RANGE, f"version {payload.version} after {state.version}"),
        (height <= payload.expires_height, Refusal.EXPIRED, f"it was to be agreed by height {payload.expires_height}"),
        (payload.height >= least, Refusal.OUT_OF_RANGE, f"height {payload.height}, nodes need notice until {least}"),
        (
            state.upgrade is None or payload.height > state.upgrade.height,
            Refusal.DUPLICATE,
            "it is agreed for that height or a later one already",
        ),
    ):
        if not ok:
            raise TransactionError(f"upgrade: {problem}", reason)
    check_approvals(state, payload)
    return replace(state, upgrade=Upgrade(payload.version, payload.height))


def advance(state: State, height: Height) -> State:
    """At the end of the block of ``height``: an upgrade that it was the first block of is done."""
    upgrade = state.upgrade
    if upgrade is None or height < upgrade.height:
        return state
    return replace(state, version=upgrade.version, upgrade=None)

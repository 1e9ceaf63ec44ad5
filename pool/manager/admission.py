"""Who may join a pool: everybody, holders of its token, or a list of accounts; and how often one may try in vain."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from typing import Final

from core.errors import AuthError, LimitError, PoflError
from core.ids import AccountId, short
from core.ports import Clock
from pool.manager.config import AdmissionConfig

__all__ = ["Admission"]

MOST_FAILURES: Final = 5
WINDOW_MS: Final = 60_000
"""Refused requests of one caller in this time, after which it is not listened to: it cannot go through tokens."""
MAX_CALLERS: Final = 4_096
"""Callers whose failures are remembered, the longest quiet forgotten first."""


class Admission:
    """The pool's rule. ``caller``: whose connection a request came on, as the servicer knows it; only itself is slowed down."""

    def __init__(self, config: AdmissionConfig, clock: Clock) -> None:
        self._mode = config.mode
        # Digests are of one length, whatever is compared: neither time nor length says anything of the token.
        self._token = _digest(config.token.encode())
        self._allowed = frozenset(account.lower() for account in config.allow)
        self._clock = clock
        self._failures: OrderedDict[str, list[int]] = OrderedDict()

    def listen(self, caller: str) -> None:
        """Raises LimitError while this caller was refused too often."""
        recent = self._recent(caller)
        if len(recent) >= MOST_FAILURES:
            seconds = -(-(recent[0] + WINDOW_MS - self._clock.now_ms()) // 1000)
            raise LimitError(
                f"{MOST_FAILURES} requests to join were refused within {WINDOW_MS // 1000} s: try again in {seconds} s",
                seconds=seconds,
            )

    def check(self, miner: AccountId, token: bytes) -> None:
        """Raises AuthError, which says who was refused and by which rule, and nothing of the token."""
        if self._mode == "token" and not hmac.compare_digest(_digest(token), self._token):
            raise AuthError(
                f"{short(miner)} is not admitted: this pool asks for its token (ask its owner, then --set token=...)"
            )
        if self._mode == "allow" and miner.hex() not in self._allowed:
            raise AuthError(f"{short(miner)} is not admitted: this pool has a list of members, without {miner.hex()}")

    def note(self, caller: str, error: PoflError) -> None:
        """A request of this caller was refused. Only what a guess would end in counts."""
        if not isinstance(error, AuthError):
            return
        self._failures[caller] = [*self._recent(caller), self._clock.now_ms()][-MOST_FAILURES:]
        self._failures.move_to_end(caller)
        while len(self._failures) > MAX_CALLERS:
            self._failures.popitem(last=False)

    def _recent(self, caller: str) -> list[int]:
        since = self._clock.now_ms() - WINDOW_MS
        return [at for at in self._failures.get(caller, []) if at > since]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()

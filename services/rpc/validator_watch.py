"""Who votes, for roles that are no nodes: proven from the genesis document on by certificates, no node is believed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from core.chain.light import Trusted, trust_genesis
from core.chain.state import Validator
from core.chain.verify import powers
from core.errors import PoflError
from core.ids import Height
from core.params import Genesis
from services.rpc.chain_client import ChainClient
from services.runtime.logging import logger

__all__ = ["ValidatorWatch"]

log = logger(__name__)

POLL_SECONDS: Final = 1.0
"""A change takes effect two heights after it was made, and a work height comes after more than one block."""


class ValidatorWatch:
    """Follows the chain as a light client. Until it has seen a block: the validators of the genesis document."""

    def __init__(
        self, chain: ChainClient, genesis: Genesis, changed: Callable[[tuple[Validator, ...]], None] | None = None
    ) -> None:
        self._chain = chain
        self._changed = changed
        self._trusted: Trusted = trust_genesis(genesis)

    @property
    def validators(self) -> tuple[Validator, ...]:
        """Who votes at the height after the last one that was seen."""
        return self._trusted.validators

    async def refresh(self) -> None:
        """Up to the last block of a node. Raises ChainError when it lies, UnavailableError, DeadlineError."""
        last = await self._chain.light_block(Height(0))
        if last.certificate.height <= self._trusted.height:
            return
        before = self._trusted.validators
        self._trusted = await self._chain.follow(self._trusted, last.certificate.height)
        if powers(before) != powers(self._trusted.validators):
            log.info("the validators changed", height=self._trusted.height + 1, count=len(self.validators))
            if self._changed is not None:
                self._changed(self.validators)

    async def run(self) -> None:
        """For ever. An outage is said when it begins and when it is over."""
        is_out = False
        while True:
            try:
                await self.refresh()
            except PoflError as error:
                if not is_out:
                    log.warning("cannot see who votes; trying until it can be seen", every_s=POLL_SECONDS, error=error)
                is_out = True
            else:
                if is_out:
                    log.info("who votes can be seen again", height=self._trusted.height)
                is_out = False
            await asyncio.sleep(POLL_SECONDS)

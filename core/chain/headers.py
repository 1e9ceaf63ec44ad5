"""Which headers are final, before anything of their blocks is here (docs/adr/0086).

An honest validator precommits a block only on its own finalised parent. So when 2/3 of a set of which fewer than 1/3 are
dishonest precommitted a block, at whatever later height, an honest one of them has finalised all blocks before it: they are
the chain's.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.chain.block import Certificate, SignedHeader
from core.chain.state import State
from core.chain.verify import check_later_certificate
from core.errors import BlockError, InputError, WrongChainError
from core.ids import BlockHash, short

__all__ = ["check_headers"]


def check_headers(state: State, headers: Sequence[SignedHeader], certificate: Certificate) -> tuple[BlockHash, ...]:
    """The hashes of the blocks after ``state``, one after another, the last of which ``certificate`` is for.

    All but the last are final; the last is too if its own validators, whom executing the others gives, signed it, which is
    checked with its block.

    Raises:
        BlockError: the headers are no chain on the tip, or fewer than 2/3 of the power that ``state`` knows signed the last.
            Their authors' signatures come with the blocks, and are checked there.
        WrongChainError: they are of another chain.
    """
    before = state.tip.block_hash
    hashes: list[BlockHash] = []
    for height, signed in enumerate(headers, state.height + 1):
        try:
            header = signed.decoded()
        except InputError as error:
            raise BlockError(f"header {height}: {error.message}") from None
        if header.chain_id != state.chain_id:
            raise WrongChainError(f"header {height}: of chain {short(header.chain_id)}, this is {short(state.chain_id)}")
        if (header.height, header.prev_hash) != (height, before):
            raise BlockError(
                f"header of height {header.height} on {short(header.prev_hash)}; wanted is {height} on {short(before)}"
            )
        before = signed.block_hash
        hashes.append(before)
    if not headers or (certificate.height, certificate.block_hash) != (state.height + len(headers), before):
        raise BlockError(f"a certificate of height {certificate.height}, not that of the last of {len(headers)} headers")
    check_later_certificate(certificate, state.chain_id, state.validators)
    return tuple(hashes)

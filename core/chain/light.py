"""A light client: from a trusted height to a later one by headers and certificates alone (docs/light-client.md).

Whoever trusts a set of validators believes a later header that 2/3 of that set's power signed, however many heights lie
between: fewer than 1/3 of it are dishonest. Where the set has changed by more, heights between are looked at. No I/O:
``follow`` is a generator that is given what it asks for.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from core.chain.block import Certificate, Header, SignedHeader
from core.chain.proofs import SetProof, check_set
from core.chain.state import Validator, genesis_validators
from core.chain.verify import check_certificate, check_header_signature, check_later_certificate, is_within_reach
from core.errors import BlockError, CryptoError, WrongChainError
from core.ids import BlockHash, Digest, Height, Milliseconds, short
from core.params import Genesis

__all__ = ["MAX_LIGHT", "LightBlock", "Trusted", "advance", "follow", "trust_genesis", "trust_hash"]

MAX_LIGHT: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class LightBlock:
    """A block without its body: what makes it final, and who votes after it."""

    header: SignedHeader
    certificate: Certificate
    proof: SetProof


@dataclass(frozen=True, slots=True)
class Trusted:
    """What a light client knows to be final."""

    chain_id: Digest
    height: Height
    block_hash: BlockHash
    time_ms: Milliseconds
    """Older than ``unbond_ms``: validators that have left since can lie without losing anything; use a trusted hash."""
    header: Header | None
    """None at height 0."""
    validators: tuple[Validator, ...]
    """Who votes at the next height."""


def trust_genesis(genesis: Genesis) -> Trusted:
    """The beginning of every chain. Raises ConfigError if the document is not usable."""
    genesis.check()
    chain_id = genesis.chain_id
    return Trusted(chain_id, Height(0), BlockHash(chain_id), genesis.time_ms, None, genesis_validators(genesis))


def trust_hash(chain_id: Digest, height: Height, block_hash: BlockHash, light: LightBlock) -> Trusted:
    """The block that its hash says, known from a source that is trusted: no signature is needed. Raises ChainError."""
    header = _read(light, chain_id)
    if (header.height, light.header.block_hash) != (height, block_hash):
        found = short(light.header.block_hash)
        raise BlockError(f"block {header.height} {found} is not the trusted {height} {short(block_hash)}")
    return _trusted(light, header)


def advance(trusted: Trusted, light: LightBlock) -> Trusted:
    """``light`` as the new trusted block, if validators that are trusted now made it final.

    Raises:
        BlockError: it is not later, is wrongly signed or linked, or fewer than 2/3 of the trusted power signed it.
        WrongChainError: it is of another chain.
    """
    header = _read(light, trusted.chain_id)
    if header.height <= trusted.height:
        raise BlockError(f"block {header.height} is not after the trusted height {trusted.height}")
    if header.height == trusted.height + 1 and header.prev_hash != trusted.block_hash:
        raise BlockError(f"block {header.height} does not follow the trusted block {short(trusted.block_hash)}")
    if header.timestamp_ms < trusted.time_ms:
        raise BlockError(f"block {header.height} is older than the trusted height {trusted.height}")
    certificate = light.certificate
    if (certificate.height, certificate.block_hash) != (header.height, light.header.block_hash):
        raise BlockError(f"block {header.height}: its certificate is for another block")
    check = check_certificate if header.height == trusted.height + 1 else check_later_certificate
    check(certificate, trusted.chain_id, trusted.validators)
    return _trusted(light, header)


def follow(trusted: Trusted, target: Height) -> Generator[Height, LightBlock, Trusted]:
    """From the trusted height to ``target``: yields heights, is sent their light blocks, returns what is then trusted.

    One block if the validators are the same or 2/3 of them are; else the distance is halved, in the worst case height by
    height. Raises what ``advance`` raises.
    """
    waiting: list[LightBlock] = []
    while trusted.height < target:
        light = waiting[-1] if waiting else (yield target)
        height = light.certificate.height
        if not waiting and height != target:
            raise BlockError(f"asked for block {target}, got one of height {height}")
        if height == trusted.height + 1 or is_within_reach(light.certificate, trusted.validators):
            trusted = advance(trusted, light)
            waiting = waiting[:-1]
            continue
        middle = Height((trusted.height + height) // 2)
        found = yield middle
        if found.certificate.height != middle:
            raise BlockError(f"asked for block {middle}, got one of height {found.certificate.height}")
        waiting = [*(waiting or [light]), found]
    return trusted


def _read(light: LightBlock, chain_id: Digest) -> Header:
    """The header, if its author signed it and its next validators are what it commits to. Raises ChainError."""
    header = check_header_signature(light.header)
    if header.chain_id != chain_id:
        raise WrongChainError(f"block {header.height} is of chain {short(header.chain_id)}, not {short(chain_id)}")
    try:
        check_set(light.proof, header.parent_state_root)
    except CryptoError as error:
        raise BlockError(f"block {header.height}: its validators: {error.message}") from None
    return header


def _trusted(light: LightBlock, header: Header) -> Trusted:
    validators = light.proof.next_validators.validators
    return Trusted(header.chain_id, header.height, light.header.block_hash, header.timestamp_ms, header, validators)

"""The first call on a connection: are we on the same chain, and whose key is at the other end?

Both sides state chain id, genesis hash and protocol version, and sign them with the Ed25519 key of their account,
together with the caller's nonce and the digest of the caller's TLS certificate. Only the caller can use that
certificate, so neither claim can be relayed by a third party who holds another one (docs/adr/0026). The handshake
guards against mistakes and names accounts; what may be called is decided by the certificate, on every call.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Annotated, Any

from grpc import aio
from pofl.admin.v1 import admin_pb2, admin_pb2_grpc

from core import codec
from core.crypto import signing
from core.errors import AuthError, CryptoError, MalformedError, WrongChainError
from services.rpc import auth, tls
from services.rpc.errors import translate

__all__ = ["ChainIdentity", "IdentityServicer", "LocalIdentity", "Remote", "shake_hands"]

DOMAIN = b"pofl/handshake/v1"
NONCE_SIZE = 32


@dataclass(frozen=True, slots=True)
class ChainIdentity:
    """Which network this is. Two processes that differ in any of the three have nothing to say to one another."""

    chain_id: str
    genesis_hash: bytes
    protocol_version: int

    def require(self, other: ChainIdentity, who: str) -> None:
        """Raises WrongChainError with both values if ``who`` is on another chain."""
        for what, ours, theirs in (
            ("chain id", self.chain_id, other.chain_id),
            ("genesis hash", self.genesis_hash.hex(), other.genesis_hash.hex()),
            ("protocol version", self.protocol_version, other.protocol_version),
        ):
            if ours != theirs:
                raise WrongChainError(
                    f"{who} has {what} {theirs}, this process has {ours}: give both the same genesis file and release",
                    ours=ours, theirs=theirs,
                )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LocalIdentity:
    """This process, as it introduces itself. ``role`` and ``name`` are those of its TLS certificate."""

    role: str
    name: str
    chain: ChainIdentity
    key: signing.KeyPair

    @property
    def caller(self) -> auth.Caller:
        return auth.Caller(self.role, self.name, self.key.public_key)


@dataclass(frozen=True, slots=True)
class Remote:
    """The process at the other end, after a handshake. ``account`` is its proven Ed25519 public key."""

    role: str
    name: str
    account: bytes

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"


@dataclass(frozen=True)
class _Claim:
    """What a Hello's signature covers."""

    direction: Annotated[int, codec.U8]
    certificate: Annotated[bytes, codec.DIGEST]
    nonce: Annotated[bytes, codec.Fixed(NONCE_SIZE)]
    chain_id: Annotated[str, codec.Text(64)]
    genesis_hash: Annotated[bytes, codec.DIGEST]
    protocol_version: Annotated[int, codec.U32]
    role: Annotated[str, codec.Text(31)]
    name: Annotated[str, codec.Text(31)]
    account: Annotated[bytes, codec.PUBLIC_KEY]


_FROM_CALLER, _FROM_SERVER = 1, 2


class IdentityServicer(admin_pb2_grpc.IdentityServiceServicer):
    """Serves `Handshake`."""

    def __init__(self, local: LocalIdentity) -> None:
        self._local = local

    async def Handshake(  # noqa: N802 - the contract's name
        self, request: admin_pb2.HandshakeRequest, context: aio.ServicerContext[Any, Any]
    ) -> admin_pb2.HandshakeResponse:
        who = auth.caller(context)
        certificate = auth.certificate_digest(context)
        _verify(self._local.chain, request.hello, _FROM_CALLER, certificate, request.nonce, str(who))
        if (request.hello.role, request.hello.name) != (who.role, who.name):
            raise AuthError(f"the handshake is of {request.hello.role}/{request.hello.name}, the certificate of {who}")
        if who.account is not None and not hmac.compare_digest(who.account, request.hello.account):
            raise AuthError(f"{who} signed with account {request.hello.account.hex()}, its certificate says another")
        return admin_pb2.HandshakeResponse(hello=_hello(self._local, _FROM_SERVER, certificate, request.nonce))


async def shake_hands(
    channel: aio.Channel, local: LocalIdentity, files: tls.TlsFiles | None, *, target: str = "", timeout: float = 5.0
) -> Remote:
    """Introduce this process on ``channel`` and check the other side's answer.

    Raises WrongChainError (with both values), AuthError or CryptoError (the answer proves nothing), UnavailableError,
    DeadlineError.
    """
    certificate = auth.own_certificate_digest(files)
    nonce = secrets.token_bytes(NONCE_SIZE)
    request = admin_pb2.HandshakeRequest(nonce=nonce, hello=_hello(local, _FROM_CALLER, certificate, nonce))
    with translate(target):
        response = await admin_pb2_grpc.IdentityServiceStub(channel).Handshake(request, timeout=timeout)
    _verify(local.chain, response.hello, _FROM_SERVER, certificate, nonce, target or "the server")
    return Remote(response.hello.role, response.hello.name, response.hello.account)


def _hello(local: LocalIdentity, direction: int, certificate: bytes, nonce: bytes) -> admin_pb2.Hello:
    hello = admin_pb2.Hello(
        chain_id=local.chain.chain_id, genesis_hash=local.chain.genesis_hash,
        protocol_version=local.chain.protocol_version, role=local.role, name=local.name, account=local.key.public_key,
    )  # fmt: skip
    hello.signature = signing.sign(local.key, DOMAIN, _transcript(hello, direction, certificate, nonce))
    return hello


def _verify(chain: ChainIdentity, hello: admin_pb2.Hello, direction: int, certificate: bytes, nonce: bytes, who: str) -> None:
    """The chain is compared first: a wrong genesis file should say so, whatever else does not match."""
    if len(hello.signature) != signing.SIGNATURE_SIZE:
        raise MalformedError(f"a handshake's signature has {signing.SIGNATURE_SIZE} bytes, got {len(hello.signature)}")
    transcript = _transcript(hello, direction, certificate, nonce)
    chain.require(ChainIdentity(hello.chain_id, hello.genesis_hash, hello.protocol_version), who)
    try:
        signing.verify(hello.account, DOMAIN, transcript, hello.signature)
    except CryptoError as error:
        raise AuthError(f"{who} does not prove its account {hello.account.hex()}: {error.message}") from error


def _transcript(hello: admin_pb2.Hello, direction: int, certificate: bytes, nonce: bytes) -> bytes:
    """Raises MalformedError or LimitError if a field has not its size."""
    claim = _Claim(
        direction=direction, certificate=certificate, nonce=nonce, chain_id=hello.chain_id,
        genesis_hash=hello.genesis_hash, protocol_version=hello.protocol_version, role=hello.role, name=hello.name,
        account=hello.account,
    )  # fmt: skip
    return codec.encode(claim)

"""A miner's node key: fresh at every Join, an ECDSA key on P-256, known to others as 33 bytes.

Flower wants a NIST curve and a PEM; everything here and in the Join call is the compressed point (SEC 1, 2.3.3).
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from core.errors import CryptoError, MalformedError

__all__ = ["NODE_KEY_BYTES", "new_node_key", "node_public_pem", "private_key_of", "public_bytes_of", "sign", "verify"]

NODE_KEY_BYTES = 33


def new_node_key() -> tuple[bytes, bytes]:
    """(private key as PKCS8 DER, public key as 33 bytes)."""
    private = ec.generate_private_key(ec.SECP256R1())
    der = private.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return der, public_bytes_of(private)


def private_key_of(der: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises MalformedError when ``der`` is no P-256 private key."""
    try:
        key = serialization.load_der_private_key(der, password=None)
    except (ValueError, TypeError) as error:
        raise MalformedError(f"the node's private key does not load: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedError("the node's private key is not on P-256")
    return key


def public_bytes_of(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def node_public_pem(public: bytes) -> bytes:
    """The PEM under which Flower knows the key. Raises MalformedError when it is no compressed P-256 point."""
    return _point(public).public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    return private.sign(message, ec.ECDSA(hashes.SHA256()))


def verify(public: bytes, message: bytes, signature: bytes) -> None:
    """Raises CryptoError when ``signature`` is not by the holder of ``public``."""
    try:
        _point(public).verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise CryptoError(f"the signature is not by node key {public.hex()[:16]}") from None


def _point(public: bytes) -> ec.EllipticCurvePublicKey:
    if len(public) != NODE_KEY_BYTES:
        raise MalformedError(f"a node key has {NODE_KEY_BYTES} bytes, got {len(public)}")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    except ValueError:
        raise MalformedError(f"{public.hex()[:16]}... is not a compressed point of P-256") from None

"""Scripts for Proof of Federated Learning: typed clients over the generated gRPC stubs (docs/clients.md).

::

    from pofl_client import Node

    with Node("127.0.0.1:7001", tls="user/tls") as node:
        print(node.tip().height)

The stubs themselves are importable as the contracts are named: ``from pofl.chain.v1 import chain_pb2, chain_pb2_grpc``.
"""

from pofl_client._async import AsyncNode, AsyncPlatform, AsyncProvider, AsyncRequester
from pofl_client._sync import Node, Platform, Provider, Requester
from pofl_client.errors import (
    AuthError,
    ChainError,
    ConfigError,
    DeadlineError,
    InputError,
    LimitError,
    MalformedError,
    NotFoundError,
    PoflError,
    ProtocolError,
    ServerError,
    TransactionError,
    UnavailableError,
)
from pofl_client.network import LocalNetwork, local_network
from pofl_client.tls import Tls
from pofl_client.values import Key, Signed, block_hash, transfer, tx_id

__all__ = [
    "Node", "Platform", "Provider", "Requester",
    "AsyncNode", "AsyncPlatform", "AsyncProvider", "AsyncRequester",
    "LocalNetwork", "Tls", "local_network",
    "Key", "Signed", "block_hash", "transfer", "tx_id",
    "AuthError", "ChainError", "ConfigError", "DeadlineError", "InputError", "LimitError", "MalformedError", "NotFoundError",
    "PoflError", "ProtocolError", "ServerError", "TransactionError", "UnavailableError",
]  # fmt: skip

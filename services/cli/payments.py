"""``pofl transfer``: money from one account to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from core.chain.transaction import Transfer
from core.errors import ConfigError
from core.ids import AccountId, Amount
from services.cli.connection import Connection, NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import MOST_NUMBER, JsonOption, console, emit_json
from services.rpc.chain_client import Wallet
from services.rpc.role import read_key

__all__ = ["transfer"]

WAIT_SECONDS: Final = 60.0


@runs
async def transfer(
    to: Annotated[str, typer.Argument(metavar="TO", help="Account that gets it: 64 hex digits, or a process of the testnet.")],
    amount: Annotated[int, typer.Argument(min=1, max=MOST_NUMBER, help="How much, in the smallest unit.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Key file of the account that pays.")],
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Pay somebody; ends when the payment is final.

    The fee of the chain (`min_fee` of the genesis document) comes on top.

    Example: pofl transfer 4e1c... 1000010 --key testnet-data/net/user/account.key
    """
    pair = read_key(key)
    async with network(net, node, tls) as connection:
        receiver = _account(connection, to)
        if receiver == pair.public_key:
            raise ConfigError(f"{key} is the key of the account that would be paid: name another --key, or another account")
        wallet = Wallet.of(connection.chain, await connection.genesis(), pair)
        tx_id, height = await wallet.send_and_wait(Transfer(receiver, Amount(amount)), WAIT_SECONDS)
        balance = (await connection.chain.account(AccountId(pair.public_key))).balance
        paid = connection.name_of(receiver)
    if as_json:
        emit_json({"transaction": tx_id, "height": height, "from": pair.public_key, "to": receiver, "amount": amount,
                   "balance": balance})  # fmt: skip
        return
    console.print(f"final in block {height}: {amount} paid to {paid}; {balance} left", highlight=False)


def _account(connection: Connection, text: str) -> AccountId:
    """Raises ConfigError."""
    members = connection.layout.members if connection.layout is not None else ()
    for member in members:
        if member.name == text:
            return member.account
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        known = f", or one of {', '.join(m.name for m in members)}" if members else ""
        raise ConfigError(f"TO is {text!r}: it must be the 64 hex digits of an account{known}")
    return AccountId(key)

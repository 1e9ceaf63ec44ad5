"""``python -m provider.report_leak --config FILE COPY``: whose rows a found copy has, and the report on them.

Runs beside the provider's own process: it reads the same data, secret and key, and writes nothing but a transaction.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

import services  # noqa: F401 - first of all: it sets what gRPC reads when it is imported
from core.chain.transaction import Bid, Payload, ReportLeak, SignedTransaction
from core.codec import decode
from core.errors import ConfigError, InputError, MarketError, PoflError
from core.ids import MILLION, AccountId, Digest, Height, PartsPerMillion, TxId, short
from core.market import contract, marks, tracing
from core.market.contract import TradeTerms
from core.market.delivery import Share
from core.ports import SystemRng
from provider.config import ProviderConfig
from provider.goods import Goods, load_goods, row_secret
from services.data.arrays import read_arrays
from services.rpc.chain_client import ChainClient, Wallet
from services.rpc.role import Role, open_chain, open_role, wait_for_chain
from services.rpc.views import BlockView, ReportOutcome, Tip, TradePhase, TradeView
from services.runtime import config
from services.runtime.lifecycle import Lifecycle, exit_code
from services.runtime.logging import shown

__all__ = ["Suspect", "find_trades", "main", "make_report", "read_copy", "suspects"]

MAX_UNPACKED: Final = 4 << 30
FINAL_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.5
SCAN_SECONDS: Final = 600.0
SOLD: Final = (TradePhase.DELIVERY, TradePhase.SETTLED, TradePhase.REFUNDED)


class ChainReads(Protocol):
    """services.rpc.chain_client.ChainClient has it."""

    async def tip(self) -> Tip: ...
    async def block(self, key: Height) -> BlockView: ...
    async def trade(self, trade_id: Digest) -> TradeView: ...


class Sender(Protocol):
    """services.rpc.chain_client.Wallet has it."""

    async def send_and_wait(self, payload: Payload, timeout: float) -> tuple[TxId, Height]: ...


@dataclass(frozen=True, slots=True)
class Suspect:
    """A miner of a trade, and how well a copy fits what it was sold."""

    trade: TradeView
    miner: AccountId
    sight: tracing.Sight

    @property
    def found(self) -> int:
        return int(self.sight.found.sum())

    @property
    def open_to_report(self) -> bool:
        """Nobody is reported twice, and no trade after its leak is proven."""
        return not self.trade.is_leaked and all(report.miner != self.miner for report in self.trade.reports)


async def find_trades(chain: ChainReads, provider: AccountId, since: Height = Height(1)) -> list[Digest]:  # noqa: B008
    """Ids of all bids with a provider in blocks from ``since`` on, earliest first."""
    found = []
    for height in range(since, (await chain.tip()).height + 1):
        body = (await chain.block(Height(height))).block.decoded_body()
        for data in body.transactions:
            payload = decode(SignedTransaction, data).decoded().payload
            if isinstance(payload, Bid):
                offer = contract.decode_offer(payload.offer)
                if offer.provider == provider:
                    terms = TradeTerms(offer, payload.bid, PartsPerMillion(payload.p_ppm), payload.miners, payload.marks)
                    found.append(contract.trade_id(terms))
    return found


def read_copy(path: Path, scale_micro: int) -> tuple[NDArray[np.float64], Digest]:
    """``x`` of an npz file, as buyers hold rows (float = int8 / scale), in the units of int8 features; and the file's digest.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        x = read_arrays(path, "x", limit=MAX_UNPACKED)["x"]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except InputError as error:
        raise ConfigError(error.message) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    if x.dtype.kind not in "fiu" or x.ndim != 2:
        raise ConfigError(f"{path}: x must be numbers of shape (n, M), got {x.dtype} {list(x.shape)}")
    return x.astype(np.float64) * (scale_micro / MILLION), Digest(digest)


def suspects(goods: Goods, trades: Sequence[TradeView], copy: NDArray[np.float64]) -> list[Suspect]:
    """All who were sold rows of this data set, the likeliest source of the copy first. Raises MarketError."""
    data = goods.data
    seen = tracing.read_copy((data.variant(0), data.variant(1)), copy)
    found = []
    for trade in trades:
        if trade.data_root != data.root or trade.phase not in SOLD:
            continue
        for index, miner in enumerate(trade.miners):
            share = Share.of(data.root, data.rows, data.features, data.classes, len(trade.miners), index)
            trace = data.trace(trade.trade_id, miner, share.count)
            found.append(Suspect(trade, miner, tracing.look(seen, tracing.Share(share.first, trace))))
    return sorted(found, key=lambda suspect: -suspect.sight.score)


def make_report(suspect: Suspect, copy: Digest) -> ReportLeak:
    """The transaction. Raises MarketError if it would only cost the bond."""
    who = f"miner {short(suspect.miner)} of trade {short(suspect.trade.trade_id)}"
    if suspect.sight.score < tracing.LEAST_SCORE:
        raise MarketError(
            f"the copy fits nobody: {who} is nearest with {suspect.sight.score:.1f} bits, a report needs "
            f"{tracing.LEAST_SCORE:g}",
            score=suspect.sight.score,
        )  # fmt: skip
    if not suspect.sight.is_ours:
        raise MarketError(f"the copy is of {who}, but has {suspect.found} marks only: too few to prove it")
    if not suspect.open_to_report:
        raise MarketError(f"the copy is of {who}, who was reported already, or whose trade is proven leaked")
    found, seen = (marks.bitmap(bits.astype(np.uint8)) for bits in (suspect.sight.found, suspect.sight.seen))
    return ReportLeak(suspect.trade.trade_id, suspect.miner, found, seen, copy)


# -- the command -------------------------------------------------------------------------------------------------------


async def _run(role: Role[ProviderConfig], arguments: argparse.Namespace, life: Lifecycle) -> dict[str, Any]:
    cfg = role.cfg
    goods = load_goods(cfg.data, row_secret(cfg.data_dir, SystemRng()))
    copy, digest = read_copy(arguments.copy, goods.feature_scale_micro)
    chain = open_chain(role, life)
    await wait_for_chain(role, chain)
    async with asyncio.timeout(SCAN_SECONDS):
        ids = [_trade_id(text) for text in arguments.trade] or await find_trades(chain, role.account, Height(arguments.since))
        trades = [await chain.trade(trade_id) for trade_id in ids]
    ranked = suspects(goods, trades, copy)
    if not ranked:
        raise MarketError("no miner was ever sold rows of this data set: there is nobody to report")
    best = ranked[0]
    result: dict[str, Any] = {
        "copy": digest.hex(), "rows": len(copy), "trade": best.trade.trade_id.hex(), "miner": best.miner.hex(),
        "pool": best.trade.pool.hex(), "score": round(best.sight.score, 1), "marks_found": best.found,
        "next_score": round(ranked[1].sight.score, 1) if len(ranked) > 1 else None, "sold_to": len(ranked),
    }  # fmt: skip
    payload = make_report(best, digest)
    if arguments.dry_run:
        return result | {"outcome": "not reported: --dry-run"}
    wallet = Wallet.of(chain, role.genesis, role.key)
    tx_id, height = await wallet.send_and_wait(payload, FINAL_SECONDS)
    result |= {"transaction": tx_id.hex(), "height": height}
    return result | await _outcome(chain, best, arguments.wait)


async def _outcome(chain: ChainClient, suspect: Suspect, wait: float) -> dict[str, Any]:
    """What the chain says of the report, at most ``wait`` seconds later."""
    end = time.monotonic() + wait
    while True:
        trade = await chain.trade(suspect.trade.trade_id)
        report = next(r for r in trade.reports if r.miner == suspect.miner)
        if report.outcome is not ReportOutcome.OPEN or time.monotonic() >= end:
            market = await chain.market(trade.provider, trade.pool)
            return {
                "outcome": report.outcome.name.lower(), "agreeing": report.agreeing, "answer_until_ms": report.deadline_ms,
                "pool_reputation_ppm": market.pool_reputation_ppm,
            }  # fmt: skip
        await asyncio.sleep(POLL_SECONDS)


def _trade_id(text: str) -> Digest:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise ConfigError(f"--trade is {text!r}: it must be the 64 hex digits of a trade's id")
    return Digest(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="pofl market report-leak", description="Find out whose rows a copy has, and report the leak on the chain."
    )
    parser.add_argument("copy", type=Path, metavar="COPY", help="npz file with x (n, M), as buyers hold rows")
    parser.add_argument("--config", type=Path, metavar="FILE", required=True, help="TOML file of the provider")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override one key")
    parser.add_argument("--trade", action="append", default=[], metavar="ID", help="look at this trade only; repeatable")
    parser.add_argument("--since", type=int, default=1, metavar="HEIGHT", help="look for trades from this block on")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="for the answer of the accused")
    parser.add_argument("--dry-run", action="store_true", help="send nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)

    async def run() -> dict[str, Any]:
        life = Lifecycle()
        role = open_role(config.load(ProviderConfig, arguments.config, os.environ, arguments.overrides))
        try:
            return await _run(role, arguments, life)
        finally:
            await life.close(time.monotonic() + 5)

    try:
        result = asyncio.run(run())
    except PoflError as error:
        sys.stderr.write(f"error: {shown(error)}\n")
        return exit_code(error)
    except TimeoutError:
        sys.stderr.write(f"error: the blocks were not read in {SCAN_SECONDS:g} s: name the trade with --trade\n")
        return 3
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{name.replace('_', ' '):20} {value}\n" for name, value in result.items())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What leaking costs a pool: two pools of a real testnet, alike but that one gives away what it buys.

Real processes throughout. For each task the provider has a new data set on sale; both pools bid for it; what they get is
what they have more than the few rows they began with. One pool's miner (bench.leaking_miner) hands bought rows out; what it
hands out the provider reports with its own command, ``pofl market report-leak``, and the nodes judge. Nothing else differs:
both pools begin with the same rows. Draws and keys are the chain's, so a run cannot be repeated number by number; the data
follow from the seed.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.leaking_miner import LEAK_TO
from core.errors import DeadlineError, PoflError
from core.ids import AccountId, Amount, Digest, PartsPerMillion
from core.market.bridge import choose_bid
from core.market.contract import DEFAULT_RULE, IntegerRule
from core.market.reverse_game import PoolPrivate
from provider.report_leak import find_trades
from services.data.rows import Rows
from services.data.stored import save_rows
from services.rpc.views import ReportOutcome, TradePhase, TradeView
from services.testnet.data import DIGITS
from services.testnet.layout import PARAMS, Layout, Member, Shape, make_layout
from services.testnet.runner import Report, WorkBlock, run_testnet
from services.testnet.supervisor import ProcessSpec, Supervisor
from services.testnet.watch import Clients

__all__ = ["RULE", "Setting", "compare", "hand_in", "measure", "problems", "rule_table", "tables"]

ROOT: Final = Path(__file__).resolve().parents[1]
Figures = dict[str, Any]
_RATIOS: Final = ("r", "p", "price_a_row", "expected_deals", "deals", "rows", "correct", "blocks")
_WINDOWS: Final = ("entry_ms", "commit_ms", "claim_ms", "body_ms", "open_ms", "session_ms", "audit_ms", "leak_window_ms")
_SHOWN: Final = ("task", "height", "pool", "correct", "total", "model_correct", "claims", "seconds")
PROFIT: Final = 20_000.0
"""Q of both pools: the default of their configuration."""
RULE: Final = replace(DEFAULT_RULE, e1_ppm=300_000, e2_ppm=600_000, alpha=Amount(10_000), D_bar=Amount(1_000))
"""A provider who loses three times as much by a leak as the default rule says. With such a D_bar the first purchase is certain
(p = 0.9998), so both pools start level; after it the highs are the chain's."""
TEST_ROWS: Final = 250
PRACTICE_ROWS: Final = 100
OWN_ROWS: Final = 30
SALE_ROWS: Final = 100
NOISE: Final = 0.4
"""Standard deviation, of a pixel's range: without it digits are learnt from a few hundred rows, and more rows win nothing."""
POLL: Final = 0.3
MAX_TASKS: Final = 1_000
WAIT_SECONDS: Final = 90.0
BLOCK_SECONDS: Final = 150.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One measurement."""

    blocks: int = 10
    """Work blocks after the honest ones."""
    honest: int = 1
    """Work blocks before the first leak."""
    nodes: int = 3
    seed: int = 1
    """Of the data; even: the first pool leaks, odd: the second."""
    slack: float = 1.0
    """All windows of a task are so many times longer: for a busy machine."""
    rule: IntegerRule = RULE

    @property
    def leaker(self) -> str:
        return f"pool{self.seed % 2}"

    @property
    def other(self) -> str:
        return f"pool{1 - self.seed % 2}"


@dataclass(slots=True)
class _Run:
    """The script of services.testnet.runner."""

    setting: Setting
    layout: Layout
    say: Any
    began: dict[int, int] = field(default_factory=dict)
    """From a task's number to the height that it was published after."""
    roots: dict[bytes, int] = field(default_factory=dict)
    reported: dict[str, Figures] = field(default_factory=dict)
    """By trade."""
    trades: list[Figures] = field(default_factory=list)
    reputations: list[Figures] = field(default_factory=list)
    claims: dict[str, dict[str, int]] = field(default_factory=dict)
    """By task id: what each pool's model scored; no entry of a pool that did not claim in time."""

    @property
    def provider(self) -> Member:
        return self.layout.of("provider")[0]

    def account(self, pool: str) -> AccountId:
        return self.layout.member(pool).account

    @property
    def found(self) -> Path:
        return self.layout.folder / "found"

    def process(self, member: Member) -> ProcessSpec:
        spec = self.layout.process(member)
        path = f"{ROOT}:{ROOT / 'proto'}"
        if member.role == "provider":
            return replace(spec, config=self.config(1))
        if member.name == f"{self.setting.leaker}-miner0":
            return replace(spec, module="bench.leaking_miner", env={LEAK_TO: str(self.found), "PYTHONPATH": path})
        return spec

    def config(self, number: int) -> Path:
        return self.layout.folder / self.provider.name / f"config{number}.toml"

    # Between the tasks

    async def before_task(self, number: int, supervisor: Supervisor, clients: Clients) -> None:
        if number > self.setting.honest:
            await self.report(clients)
        if number > 1:
            await supervisor.end(self.provider.name)
            await supervisor.start(replace(self.layout.process(self.provider), config=self.config(number)))
        await self.on_sale(number, clients)
        self.began[number] = (await clients.chain.tip()).height

    async def on_sale(self, number: int, clients: Clients) -> None:
        """Until every node knows the provider's data set of this task."""
        end = time.monotonic() + WAIT_SECONDS
        for node in clients.nodes.values():
            while True:
                root = next((bytes(p.data_root) for p in await node.providers()), b"")
                if root and self.roots.get(root, number) == number:
                    self.roots[root] = number
                    break
                if time.monotonic() > end:
                    raise DeadlineError(f"the provider's data set {number} is not registered after {WAIT_SECONDS:g} s")
                await asyncio.sleep(POLL)

    async def report(self, clients: Clients) -> None:
        """The newest copy that was handed out, once."""
        copies = sorted(self.found.glob("*.npz"), key=lambda path: path.stat().st_mtime)
        if not copies or copies[-1].stem in self.reported:
            return
        copy = copies[-1]
        trade = await clients.chain.trade(Digest(bytes.fromhex(copy.stem)))
        if trade.phase is TradePhase.BID:
            return
        figures = await hand_in(copy, self.config(self.roots[trade.data_root]), WAIT_SECONDS)
        self.reported[copy.stem] = {"task": self.roots[trade.data_root], **figures}
        self.say(f"leak of trade {copy.stem[:8]} reported: {figures['outcome']}, reputation {figures['pool_reputation_ppm']}")

    # What came of it

    async def at_end(self, clients: Clients) -> None:
        pools = (self.setting.leaker, self.setting.other)
        names = {self.account(pool): pool for pool in pools}
        for trade_id in await find_trades(clients.chain, self.provider.account):
            trade = await clients.chain.trade(trade_id)
            self.trades.append(_trade(trade, self.roots[trade.data_root], names[trade.pool]))
        self.trades.sort(key=lambda t: (t["task"], t["pool"] != self.setting.leaker))
        self.reputations = [{"height": t["height"], "pool": t["pool"], "r": t["r"]} for t in self.trades]
        for task in await clients.chain.tasks(limit=MAX_TASKS):
            scores = {names[e.pool]: int(e.correct) for e in task.entries if e.correct is not None}
            self.claims[task.task_id.hex()] = scores
        tip = (await clients.chain.tip()).height
        for pool in pools:
            market = await clients.chain.market(self.provider.account, self.account(pool))
            self.reputations.append({"height": tip, "pool": pool, "r": market.pool_reputation_ppm / 1e6})

    def task_of(self, block: WorkBlock) -> int:
        return max((n for n, height in self.began.items() if height < block.height), default=1)


async def hand_in(copy: Path, config: Path, seconds: float) -> Figures:
    """The provider's own command reports a copy; what it tells, once the nodes have judged. Raises PoflError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli.main", "market", "report-leak", str(copy),
        "--config", str(config), "--wait", str(seconds), "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        out, said = await asyncio.wait_for(process.communicate(), 3 * seconds)
    except TimeoutError:
        raise DeadlineError(f"report-leak of {copy.name} did not end within {3 * seconds:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise PoflError(f"report-leak ended with {process.returncode}: {said.decode(errors='replace')[-400:]}")
    figures: Figures = json.loads(out)
    return figures


def _trade(trade: TradeView, task: int, pool: str) -> Figures:
    delivered = trade.rows * trade.chunks_delivered // max(1, trade.chunks_total)
    return {
        "task": task, "pool": pool, "height": trade.bid_height, "trade": trade.trade_id.hex(),
        "r": trade.reputation_ppm / 1e6, "p": trade.p_ppm / 1e6, "m": trade.bid, "D_s": trade.markup,
        "price": trade.bid + trade.markup, "price_a_row": (trade.bid + trade.markup) / trade.rows,
        "deal": trade.phase not in (TradePhase.BID, TradePhase.NO_DEAL), "rows": delivered, "leaked": trade.is_leaked,
        "outcomes": [ReportOutcome(r.outcome).name.lower() for r in trade.reports],
    }  # fmt: skip


# -- the data ----------------------------------------------------------------------------------------------------------


def write_data(layout: Layout, setting: Setting) -> None:
    """Noisy digits: one test set, one practice set, the same few rows for every miner, and a data set on sale a task.

    Images on sale may come again in later data sets, with other noise: as other scans.
    """
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(setting.seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))

    def rows(chosen: Any) -> Rows:
        x = digits.data[chosen] / 16.0
        noisy = np.clip((x + rng.normal(0, NOISE, x.shape)) / 2, -1, 1).astype(np.float32)
        return Rows("scikit-learn's digits", "digits", noisy, digits.target[chosen].astype(np.int64), DIGITS.classes)

    edges = np.cumsum([TEST_ROWS, PRACTICE_ROWS, OWN_ROWS])
    test, practice, own, rest = np.split(order, edges)
    save_rows(layout.data("test"), rows(test))
    save_rows(layout.data("practice"), rows(practice))
    shared = rows(own)
    for member in layout.of("miner"):
        save_rows(layout.data(member.name), shared)
    home = layout.folder / layout.of("provider")[0].name
    config = (home / "config.toml").read_text(encoding="utf-8") + rule_table(setting.rule)
    # One for each task, and some for tasks that end without a block.
    for number in range(1, 2 * (setting.honest + setting.blocks) + 1):
        save_rows(layout.data(f"sale{number}"), rows(rng.choice(rest, SALE_ROWS, replace=False)))
        (home / f"config{number}.toml").write_text(config.replace("provider.npz", f"sale{number}.npz"), encoding="utf-8")


def rule_table(rule: IntegerRule) -> str:
    """The lines of a provider's configuration."""
    values = {
        "e1_ppm": rule.e1_ppm, "e2_ppm": rule.e2_ppm, "eta_micro": rule.eta_micro, "alpha": rule.alpha,
        "beta_micro": rule.beta_micro, "markup_high": rule.D_bar, "bid_high": rule.m_bar, "bid_least": rule.m_min,
    }  # fmt: skip
    return "\n[rule]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


# -- the whole ---------------------------------------------------------------------------------------------------------


async def measure(setting: Setting, folder: Path | None, observer: Any) -> Figures:
    """Run the testnet, and say what leaking cost. Logs stay in ``folder``; without one they go unless it fails."""
    home = Path(tempfile.mkdtemp(prefix="pofl-leaking-pool-")) / "net" if folder is None else folder
    longer = {name: round(getattr(PARAMS, name) * setting.slack) for name in _WINDOWS}
    params = replace(PARAMS, **longer)
    layout = make_layout(home, Shape(nodes=setting.nodes, pools=2, miners=1), params)
    write_data(layout, setting)
    run = _Run(setting, layout, observer.say)
    run.found.mkdir()
    total = setting.honest + setting.blocks
    report = await run_testnet(layout, total, observer, WAIT_SECONDS + BLOCK_SECONDS * total, run)
    if folder is None:
        shutil.rmtree(home.parent)
    return summary(setting, run, report)


def summary(setting: Setting, run: _Run, report: Report) -> Figures:
    blocks = [asdict(b) | {"task": run.task_of(b), "claims": run.claims.get(b.task_id, {})} for b in report.blocks]
    first = min((r["task"] for r in run.reported.values()), default=0)
    # Bids after the first judged report: those of the first task that was published after it.
    since = max(setting.honest, first) + 1
    found: Figures = {
        "seed": setting.seed, "leaker": setting.leaker, "honest": setting.other, "rule": asdict(setting.rule),
        "first_task_after_report": since, "reputation": run.reputations, "trades": run.trades,
        "reports": list(run.reported.values()), "void_tasks": report.void_tasks, "seconds": round(report.seconds),
        "blocks": [{k: b[k] for k in _SHOWN} for b in blocks],
        "problems": report.problems,
    }  # fmt: skip
    for name, chosen in (("before", range(since)), ("after", range(since, 1 << 30))):
        trades = [t for t in run.trades if t["task"] in chosen]
        found[name] = compare(setting, trades, [b for b in blocks if b["task"] in chosen])
    # The last two entries are how it ended.
    found["default_rule"] = [{"pool": e["pool"], "r": e["r"], **_default(e["r"])} for e in run.reputations[-2:]]
    return found


def compare(setting: Setting, trades: Sequence[Figures], blocks: Sequence[Figures]) -> Figures:
    """Means over data sets that both pools bid for, sums over all."""
    pools = {"leaking": setting.leaker, "honest": setting.other}
    tasks = [{t["task"] for t in trades if t["pool"] == pool} for pool in pools.values()]
    both = tasks[0] & tasks[1]
    sides: Figures = {}
    for side, pool in pools.items():
        own = [t for t in trades if t["pool"] == pool]
        paired = [t for t in own if t["task"] in both]
        sides[side] = {
            "r": _mean(t["r"] for t in paired), "p": _mean(t["p"] for t in paired), "m": _mean(t["m"] for t in paired),
            "D_s": _mean(t["D_s"] for t in paired), "price_a_row": _mean(t["price_a_row"] for t in paired),
            "bids": len(own), "expected_deals": round(sum(t["p"] for t in own), 2), "deals": sum(t["deal"] for t in own),
            "rows": sum(t["rows"] for t in own),
            "blocks": sum(b["pool"] == pool for b in blocks),
            # Of both models where both were claimed in time.
            "correct": _mean(b["claims"][pool] for b in blocks if len(b["claims"]) == len(pools)),
        }  # fmt: skip
    a, b = sides["leaking"], sides["honest"]
    ratios = {k: round(a[k] / b[k], 3) if b[k] else None for k in _RATIOS}
    n, k = a["blocks"] + b["blocks"], a["blocks"]
    by_chance = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return {**sides, "leaking_to_honest": ratios, "chance_of_so_few_blocks": round(by_chance, 4)}


def _mean(values: Any) -> float:
    kept = list(values)
    return round(statistics.fmean(kept), 4) if kept else 0.0


def _default(r: float) -> Figures:
    """What the default rule would make of this reputation, before any trade is settled."""
    chosen = choose_bid(DEFAULT_RULE, PoolPrivate(PROFIT, 0.0, 0.0), PartsPerMillion(round(r * 1e6)))
    assert chosen is not None, "the default pool bids at every reputation"
    return {"p": chosen[1].p_ppm / 1e6, "price": chosen[1].price}


def problems(found: Figures) -> list[str]:
    """What is not as the market promises. Whether fewer blocks are won is left to chance in so short a run: not here."""
    broken = list(found["problems"])
    after = found["after"]
    if not found["reports"]:
        broken.append("no leak was reported: the leaking pool bought nothing")
    broken += [f"a report ended as {r['outcome']}" for r in found["reports"] if r["outcome"] != "leaked"]
    if after["leaking"]["bids"] and after["honest"]["bids"]:
        ratios = after["leaking_to_honest"]
        broken += [f"{name}: {ratios[name]} of the honest pool's" for name in ("r", "p") if not (ratios[name] or 0) < 1]
        if not (ratios["price_a_row"] or 0) > 1:
            broken.append(f"price a row: {ratios['price_a_row']} of the honest pool's")
    return broken


def tables(found: Figures) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns, lines."""
    names = {found["leaker"]: "leaking", found["honest"]: "honest"}
    winners = {b["task"]: b for b in found["blocks"]}
    lines = []
    for t in found["trades"]:
        block = winners.get(t["task"])
        score = "" if block is None else str(block["claims"].get(t["pool"], ""))
        won = "yes" if block is not None and block["pool"] == t["pool"] else ""
        lines.append([
            str(t["task"]), names[t["pool"]], f"{t['r']:.3f}", str(t["m"]), str(t["D_s"]), f"{t['price_a_row']:.1f}",
            f"{t['p']:.3f}", "yes" if t["deal"] else "no", str(t["rows"]), ", ".join(t["outcomes"]), score, won,
        ])  # fmt: skip
    sums = []
    for when in ("before", "after"):
        for side in ("leaking", "honest"):
            s = found[when][side]
            sums.append([
                when, side, f"{s['r']:.3f}", f"{s['p']:.3f}", f"{s['price_a_row']:.1f}",
                f"{s['expected_deals']:.1f}", f"{s['deals']} of {s['bids']}",
                str(s["rows"]), f"{s['correct']:.1f}", str(s["blocks"]),
            ])  # fmt: skip
        q = found[when]["leaking_to_honest"]
        sums.append(
            [when, "ratio", *(str(q[k]) for k in ("r", "p", "price_a_row", "expected_deals", "deals", "rows", "blocks"))]
        )
    return [
        (f"trades, {found['leaker']} leaks", ["task", "pool", "r", "m*", "D_s*", "price a row", "p", "deal", "rows", "report",
         "correct", "block"], lines),
        (f"before and after the first report; so few blocks by chance: {found['after']['chance_of_so_few_blocks']}",
         ["", "pool", "r", "p", "price a row", "expected", "deals", "rows", "correct", "blocks"], sums),
    ]  # fmt: skip

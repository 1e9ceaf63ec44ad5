"""What marks cost and what they prove (docs/market.md): ``python -m bench.marks [--json]`` or ``pofl bench marks``.

Four questions, each through the functions that provider and nodes use: accuracy lost by training on variants; reports of a
seller who knows nothing (and of one who tampers with the transfer); reports on buyers who leaked nothing; leaks found, as
they are and after what a leaker may do to them. Seeded: the same numbers again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.market import marks, tracing
from core.market.tracing import Share
from core.market.variants import DEFAULT_STRENGTH, make_variants

__all__ = [
    "Data", "accuracy", "detection", "framing", "innocent", "load_archive", "load_digits", "measure", "problems",
    "tables",
]  # fmt: skip

SECRET: Final = b"bench/marks".ljust(32, b"\0")
MINERS: Final = 3
STRENGTHS: Final = (DEFAULT_STRENGTH // 2, DEFAULT_STRENGTH, 2 * DEFAULT_STRENGTH)
HIDDEN, EPOCHS, BATCH, RATE = 32, 30, 32, 0.003
Floats = NDArray[np.float64]
Values = NDArray[np.int8]
Bits = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Data:
    """int8 features and labels; ``train`` is what is sold."""

    name: str
    train: tuple[Values, NDArray[np.int64]]
    test: tuple[Values, NDArray[np.int64]]


def load_digits() -> Data:
    """scikit-learn's 1,797 digits: 1,197 on sale, 600 to test on."""
    from sklearn.datasets import load_digits as load

    digits = load()
    x, y = np.rint(digits.data / 16 * 127).astype(np.int8), digits.target.astype(np.int64)
    order = np.random.default_rng(1).permutation(len(y))
    sold, test = order[:1_197], order[1_197:]
    return Data("digits", (x[sold], y[sold]), (x[test], y[test]))


def load_archive(path: Path, rows: int) -> Data:
    """``x_train, y_train, x_test, y_test`` of an npz file, bytes 0..255 as features; the first ``rows`` rows are on sale."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            parts = [arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: no npz file with x_train, y_train, x_test, y_test: {error}") from None
    x, y, xt, yt = parts
    to_int8: Callable[[Any], Values] = lambda v: np.rint(v.reshape(len(v), -1) / 255 * 127).astype(np.int8)  # noqa: E731
    return Data(path.stem, (to_int8(x[:rows]), y[:rows].astype(np.int64)), (to_int8(xt), yt.astype(np.int64)))


# -- accuracy ----------------------------------------------------------------------------------------------------------


def accuracy(data: Data, strengths: tuple[int, ...], runs: int, seed: int) -> dict[str, Any]:
    """Test accuracy in percent after training on the rows, and on one random variant of each, with the same start and order.

    The variant of a row is its group's choice against a trace bit, as miners get them. ``lost`` is a mean of paired
    differences, with its standard error.
    """
    x = data.train[0]
    found: dict[str, Any] = {"runs": runs, "rows": len(x), "strengths": {}}
    plain = np.array([_train(data, x, seed + run) for run in range(runs)])
    found["plain_percent"] = round(float(plain.mean()) * 100, 2)
    for strength in strengths:
        variants = make_variants(x, strength, SECRET)
        marked = np.array([_train(data, _bought(variants, seed + run), seed + run) for run in range(runs)])
        lost = (plain - marked) * 100
        found["strengths"][str(strength)] = {
            "marked_percent": round(float(marked.mean()) * 100, 2),
            "lost_points": round(float(lost.mean()), 3),
            "standard_error": round(float(lost.std(ddof=1) / math.sqrt(runs)), 3) if runs > 1 else None,
        }
    return found


def _bought(variants: tuple[Values, Values], seed: int) -> Values:
    """All rows, one variant each, as MINERS miners of one pool hold them together."""
    rng = np.random.default_rng([seed, 7])
    which = rng.integers(0, 2, len(variants[0]))
    return np.where(which[:, None] == 0, *variants)


def _train(data: Data, x: Values, seed: int) -> float:
    """One hidden layer of ReLU, softmax, Adam: what a pool's model of Table II is like. Accuracy on the test rows."""
    rng = np.random.default_rng(seed)
    y, classes = data.train[1], int(data.train[1].max()) + 1
    rows, target = x.astype(np.float32) / 127, np.eye(classes, dtype=np.float32)[y]
    scale = np.sqrt(2 / x.shape[1])
    theta = [
        rng.normal(0, scale, (x.shape[1], HIDDEN)).astype(np.float32), np.zeros(HIDDEN, np.float32),
        rng.normal(0, np.sqrt(2 / HIDDEN), (HIDDEN, classes)).astype(np.float32), np.zeros(classes, np.float32),
    ]  # fmt: skip
    first, second = [np.zeros_like(t) for t in theta], [np.zeros_like(t) for t in theta]
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(rows))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            a = rows[part]
            h = np.maximum(a @ theta[0] + theta[1], 0)
            z = h @ theta[2] + theta[3]
            p = np.exp(z - z.max(axis=1, keepdims=True))
            d = (p / p.sum(axis=1, keepdims=True) - target[part]) / len(part)
            back = (d @ theta[2].T) * (h > 0)
            step += 1
            for i, g in enumerate((a.T @ back, back.sum(axis=0), h.T @ d, d.sum(axis=0))):
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g * g
                rate = RATE * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                theta[i] -= rate * first[i] / (np.sqrt(second[i]) + 1e-8)
    tests = data.test[0].astype(np.float32) / 127
    answer = (np.maximum(tests @ theta[0] + theta[1], 0) @ theta[2] + theta[3]).argmax(axis=1)
    return float((answer == data.test[1]).mean())


# -- reports of sellers who know nothing -------------------------------------------------------------------------------


def framing(tries: int, seed: int) -> dict[str, Any]:
    """Sellers who invent a copy: how many of their reports are taken for proof. The buyer's seeds are fresh each time.

    ``guess``: random bits on all groups. ``constant``: always choice 0. ``few``: as few groups as a report may have.
    ``tamper``: in ten groups the seller spoils what choice 1 opens; a buyer with such a choice ends the delivery, and she
    reports what that tells her.
    """
    rng = np.random.default_rng(seed)
    count = marks.MARKS
    everything = (1 << count) - 1
    few = (1 << marks.SECURITY + 1) - 1
    accused = dict.fromkeys(("guess", "constant", "few", "tamper"), 0)
    most = 0
    for _ in range(tries):
        choices = _as_int(marks.choices_of(rng.bytes(marks.SEED_SIZE), count))
        guess = int.from_bytes(rng.bytes(marks.BITMAP_SIZE), "little")
        spoiled = (1 << 10) - 1
        told = guess & ~spoiled if choices & spoiled == 0 else guess
        reports = {
            "guess": (everything, guess), "constant": (everything, 0), "few": (few, guess & few),
            "tamper": (everything, told),
        }  # fmt: skip
        for kind, (found, seen) in reports.items():
            agreeing, _, proven = marks.agreement(found, seen, choices)
            accused[kind] += proven
            most = max(most, agreeing if kind == "guess" else 0)
    return {
        "tries_of_each": tries, "accused": accused, "most_agreeing_of_256": most, "needed": marks.least_agreeing(count),
        "log2_chance_of_one_report": _log2_tail(count),
    }  # fmt: skip


def innocent(data: Data, tries: int, seed: int) -> dict[str, Any]:
    """A true copy of one buyer's share, reported on others who hold the same rows: are they convicted, are they traced?

    Half of the copies are whole, half are random halves. Each try has fresh choices and trace bits of the innocent buyer.
    """
    rng = np.random.default_rng(seed)
    variants = make_variants(data.train[0], DEFAULT_STRENGTH, SECRET)
    rows = len(data.train[0]) // MINERS
    count = marks.mark_count(rows)
    convicted = traced = 0
    highest, copies = 0.0, []
    for number in range(20):
        held, _, _ = _held(variants, rows, rng)
        part = held if number % 2 else held[rng.permutation(rows)[: rows // 2]]
        copies.append(tracing.read_copy(variants, part.astype(np.float64)))
    for number in range(tries):
        trace = rng.integers(0, 2, rows, dtype=np.uint8)
        sight = tracing.look(copies[number % len(copies)], Share(0, trace))
        choices = _as_int(marks.choices_of(rng.bytes(marks.SEED_SIZE), count))
        _, _, proven = marks.agreement(_as_int(sight.found), _as_int(sight.seen), choices)
        convicted += proven
        traced += sight.is_ours
        highest = max(highest, sight.score)
    return {"tries": tries, "convicted": convicted, "traced": traced, "highest_score": round(highest, 2), "marks": count}


# -- leaks -------------------------------------------------------------------------------------------------------------


def _held(variants: tuple[Values, Values], rows: int, rng: np.random.Generator) -> tuple[Values, Bits, Bits]:
    """What a miner holds of the first ``rows`` rows, its trace bits and its choices."""
    count = marks.mark_count(rows)
    choices = rng.integers(0, 2, count, dtype=np.uint8)
    trace = rng.integers(0, 2, rows, dtype=np.uint8)
    which = choices[marks.group_of(np.arange(rows), count)] ^ trace
    return np.where(which[:, None] == 0, variants[0][:rows], variants[1][:rows]), trace, choices


def leaks(held: Values, other: Values, rng: np.random.Generator) -> Iterator[tuple[str, Floats]]:
    """Copies that a leaker may give away; ``other``: the same rows as another buyer holds them."""
    x, n = held.astype(np.float64), len(held)
    yield "as it is", x
    yield "shuffled", x[rng.permutation(n)]
    for share in (2, 4, 10):
        yield f"1/{share} of the rows, shuffled", x[rng.permutation(n)[: n // share]]
    for bits in (1, 2, 3, 4, 5, 6):
        yield f"{bits} of 7 low bits rounded away", np.rint(x / 2**bits) * 2**bits
    yield "half of the rows, 4 low bits rounded away", np.rint(x[rng.permutation(n)[: n // 2]] / 16) * 16.0
    for sigma in (8, 16, 32):
        yield f"noise of {sigma} of 127", x + rng.normal(0, sigma, x.shape)
    yield "black and white", np.where(x > 64, 127.0, 0.0)
    middle = x.mean(axis=0)
    _, _, axes = np.linalg.svd(x - middle, full_matrices=False)
    for keep in (axes.shape[1] // 2, axes.shape[1] // 4):
        yield f"{keep} principal components of {x.shape[1]}", (x - middle) @ axes[:keep].T @ axes[:keep] + middle
    for share, beyond in ((4, 0.5), (8, 0.0), (8, 0.5), (8, 1.0)):
        smooth = (x - middle) @ axes[: axes.shape[1] // share].T @ axes[: axes.shape[1] // share] + middle
        yield f"1/{share} of the components, less {beyond:g} of the rest", (smooth - beyond * (x - smooth)).astype(np.float64)
    y = other.astype(np.float64)
    yield "two buyers, rows of either", np.where(rng.integers(0, 2, n)[:, None] == 0, x, y)
    yield "two buyers, averaged", (x + y) / 2
    yield "two buyers, values of either", np.where(rng.integers(0, 2, x.shape) == 0, x, y)


def detection(data: Data, tries: int, seed: int) -> dict[str, Any]:
    """Of ``tries`` leaks of each kind: how many the seller traces to the leaker, and how many the chain then convicts.

    The leaker's share stands among nine that others bought.
    """
    rng = np.random.default_rng(seed)
    variants = make_variants(data.train[0], DEFAULT_STRENGTH, SECRET)
    rows = len(data.train[0]) // MINERS
    counts: dict[str, list[int]] = {}
    sums: dict[str, list[float]] = {}
    for _ in range(tries):
        held, trace, choices = _held(variants, rows, rng)
        other, _, _ = _held(variants, rows, rng)
        sold = [Share(0, trace), *(Share(0, rng.integers(0, 2, rows, dtype=np.uint8)) for _ in range(9))]
        for kind, copy in leaks(held, other, rng):
            best, sight = tracing.most_likely(tracing.read_copy(variants, copy), sold)
            found, seen = _as_int(sight.found), _as_int(sight.seen)
            agreeing, total, proven = marks.agreement(found, seen, _as_int(choices))
            traced = best == 0 and sight.is_ours
            one = counts.setdefault(kind, [0, 0])
            one[0] += traced
            one[1] += traced and proven
            mean = sums.setdefault(kind, [0.0, 0.0, 0.0, 0.0])
            truth = data.train[0][:rows].astype(np.float64)
            error = float(np.sqrt(((copy - truth) ** 2).mean())) if len(copy) == rows and kind != "shuffled" else math.nan
            for i, value in enumerate((sight.score, agreeing, total, error)):
                mean[i] += value / tries
    return {
        kind: {
            "traced_percent": round(100 * traced / tries, 1), "convicted_percent": round(100 * convicted / tries, 1),
            "mean_score": round(sums[kind][0], 1), "mean_agreeing": round(sums[kind][1], 1),
            "mean_found": round(sums[kind][2], 1),
            "error_of_127": None if math.isnan(sums[kind][3]) else round(sums[kind][3], 1),
        }
        for kind, (traced, convicted) in counts.items()
    }  # fmt: skip


def costs(seed: int) -> dict[str, Any]:
    """Processor milliseconds of the transfer for 256 marks, and bytes, on this machine."""
    session = marks.session_id(*(bytes([i]) * 32 for i in range(5)))  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        found[name] = round((time.process_time() - start) * 1000, 1)
        return result

    marking = timed("buyer_commits_ms", lambda: marks.commit(rng.bytes(32), session, marks.MARKS))
    sold = timed(
        "seller_ms",
        lambda: marks.seller_keys(session, marking.commitment, marking.seed_hash, marking.points, marks.MARKS, rng.bytes(32)),
    )
    timed("buyer_takes_ms", lambda: marks.group_keys(marking, session, sold[1]))
    points = marks.points_digest(marking.points)
    timed("node_judges_ms", lambda: marks.opened(marking.commitment, marking.seed, points, session, marks.MARKS))
    found.update(buyer_message_bytes=len(marking.points), seller_message_bytes=len(sold[1]))
    return found


def measure(
    tries: int, leak_tries: int, runs: int, seed: int, archive: Path | None = None, rows: int = 6_000,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """All of it; with ``archive`` accuracy and leaks of that data too. Raises ConfigError for a bad archive."""
    started = time.process_time()
    sets = [load_digits(), *([] if archive is None else [load_archive(archive, rows)])]
    result: dict[str, Any] = {
        "seed": seed, "strength_ppm": DEFAULT_STRENGTH, "security_bits": marks.SECURITY, "costs": costs(seed),
    }  # fmt: skip
    log(f"{tries} reports of each kind by sellers who know nothing")
    result["framing"] = framing(tries, seed)
    log(f"{tries} reports on buyers who leaked nothing")
    result["innocent"] = innocent(sets[0], tries, seed)
    result["data"] = {}
    for number, data in enumerate(sets):
        few = number > 0
        log(f"{data.name}: leaks")
        found = detection(data, max(1, leak_tries // 10) if few else leak_tries, seed)
        log(f"{data.name}: accuracy")
        kept = accuracy(data, STRENGTHS, max(2, runs // 4) if few else runs, seed)
        result["data"][data.name] = {"leaks": found, "accuracy": kept}
    result["cpu_seconds"] = round(time.process_time() - started, 1)
    return result


def problems(result: dict[str, Any]) -> list[str]:
    """What of a result breaks the promises of docs/market.md."""
    found = [f"{n} framed buyers convicted ({kind})" for kind, n in result["framing"]["accused"].items() if n]
    if result["innocent"]["convicted"]:
        found.append(f"{result['innocent']['convicted']} innocent buyers convicted")
    lost = result["data"]["digits"]["accuracy"]["strengths"][str(DEFAULT_STRENGTH)]["lost_points"]
    return [*found, f"{lost} points of accuracy lost on digits"] if lost >= 0.5 else found


def tables(result: dict[str, Any]) -> Iterator[tuple[str, list[str], list[tuple[object, ...]]]]:
    """Title, columns and lines, for people."""
    framed, others = result["framing"], result["innocent"]
    lines: list[tuple[object, ...]] = [(f"framing: {k}", framed["tries_of_each"], n) for k, n in framed["accused"].items()]
    yield "wrongly convicted", ["who", "tries", "convicted"], [*lines, ("innocent", others["tries"], others["convicted"])]
    for name, found in result["data"].items():
        leaked = [(kind, *line.values()) for kind, line in found["leaks"].items()]
        yield f"leaks of {name}", ["copy", "traced %", "convicted %", "score", "agreeing", "found", "error"], leaked
        lost = [(s, *line.values()) for s, line in found["accuracy"]["strengths"].items()]
        plain = found["accuracy"]["plain_percent"]
        yield f"accuracy on {name}, {plain} % without marks", ["strength ppm", "%", "lost points", "standard error"], lost
    yield "costs", ["", "measured"], list(result["costs"].items())


def _as_int(bits: NDArray[Any]) -> int:
    return int.from_bytes(np.packbits(bits.astype(np.uint8), bitorder="little").tobytes(), "little")


def _log2_tail(count: int) -> float:
    least = marks.least_agreeing(count)
    assert least is not None
    return round(math.log2(2 * sum(math.comb(count, k) for k in range(least, count + 1))) - count, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=100_000)
    parser.add_argument("--leaks", type=int, default=100)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = measure(given.tries, given.leaks, given.runs, given.seed, given.archive, given.rows)
    print(json.dumps(result, indent=None if given.json else 2))


if __name__ == "__main__":
    main()

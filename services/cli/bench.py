"""``pofl bench``: measurements on this machine. They live beside the product, in the source tree, and are not installed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from core.errors import ConfigError
from services.cli.errors import heeds_ctrl_c, runs
from services.cli.output import JsonOption, console, emit_json, table

__all__ = ["app"]

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)


@contextmanager
def source_tree() -> Iterator[None]:
    """Around the import of a measurement: raises ConfigError where the source tree is not there to import from."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("bench", "tests"):
            raise
        raise ConfigError("the measurements are not installed: run `pofl bench` in the source tree of PoFL") from None


@app.callback()
def _group() -> None:
    """Measure this machine."""


@app.command()
@runs
async def verification(
    samples: Annotated[str, typer.Option(help="Sizes of the test set, separated by commas.")] = "10000",
    layers: Annotated[str, typer.Option(help="Widths: features, hidden layers, classes.")] = "256,16,16,10",
    rounds: Annotated[int, typer.Option("--runs", help="How often each step is measured; the median counts.", min=1)] = 5,
    nodes: Annotated[
        int | None,
        typer.Option(help="Nodes that audit at once; 0 leaves it out.", min=0, max=64, show_default="16, in a series 0"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the paper's figures there, PNG and CSV.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Model verification with real services on loopback: audit, evaluation, encryption, garbling, transfer.

    Takes minutes; standard error says what is being measured. With several sizes also how cost grows.

    Example: pofl bench verification --samples 10000 --layers 256,16,16,10 --json

    Example: pofl bench verification --samples 100,1000,10000,50000 --plot figures
    """
    with source_tree():
        from bench.verification_report import report, tables
    result = await report(samples, layers, rounds, nodes, plot)
    if as_json:
        emit_json(result)
        return
    for shown in tables(result):
        console.print(shown)


@app.command()
@runs
async def exactness(
    cases: Annotated[int, typer.Option(help="How many random models and test sets.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Replays a run: a case is a function of seed and number.", min=0)] = 20261122,
    as_json: JsonOption = False,
) -> None:
    """N of pool, requester and node against a plain count: whole evaluations and audits on random models.

    Ends with exit code 1 if any case differs.

    Example: pofl bench exactness --cases 1000 --json
    """
    with source_tree():
        from bench.exactness import measure
    heeds_ctrl_c()
    result = measure(cases, seed)
    if as_json:
        emit_json(result)
    else:
        shown = [(name, value) for name, value in result.items() if name != "failures"]
        console.print(table(f"{cases} random models and test sets", ["", "found"], [*shown, *enumerate(result["failures"])]))
    if result["differences"]:
        raise typer.Exit(1)


@app.command()
@runs
async def lies(
    tries: Annotated[int, typer.Option(help="Tries of each kind through the forms of the zero checks.", min=1)] = 10_000,
    protocol_tries: Annotated[int, typer.Option(help="Tries of each kind through whole sessions.", min=0)] = 20,
    seed: Annotated[int | None, typer.Option(help="Of the liars; drawn where left out. Coins are always fresh.", min=0)] = None,
    as_json: JsonOption = False,
) -> None:
    """Every kind of lie about a model's accuracy, many times: how many pass? Ends with exit code 1 if any does.

    Example: pofl bench lies --tries 10000 --protocol-tries 20 --json
    """
    with source_tree():
        from bench.lies import measure
    heeds_ctrl_c()
    result = measure(tries, protocol_tries, secrets.randbits(32) if seed is None else seed)
    if as_json:
        emit_json(result)
    else:
        shown = [(one["kind"], one["depth"], one["tries"], one["missed"], f"{one['seconds']:.1f}") for one in result["kinds"]]
        title = f"{result['missed']} of {result['tries']} lies missed, seed {result['seed']}"
        console.print(table(title, ["lie", "through", "tries", "missed", "CPU s"], shown, right=[2, 3, 4]))
    if result["missed"] or result["honest_refused"]:
        raise typer.Exit(1)


@app.command()
@runs
async def consensus(
    blocks: Annotated[int, typer.Option(help="Length of the chain that a new node fetches.", min=64)] = 1_000,
    transactions: Annotated[int, typer.Option(help="Handed in at once, to all nodes.", min=1)] = 2_000,
    heights: Annotated[int, typer.Option(help="Blocks decided one after another while memory is watched.", min=8)] = 5_000,
    rounds: Annotated[int, typer.Option("--runs", help="Transactions whose way to a final block is timed.", min=1)] = 25,
    validators: Annotated[int, typer.Option(help="Nodes that vote.", min=1, max=16)] = 4,
    as_json: JsonOption = False,
) -> None:
    """Real nodes on loopback: time to a final block, transactions a second, catching up, growth of memory.

    Takes some minutes; standard error says what is being measured.

    Example: pofl bench consensus --json
    """
    with source_tree():
        from bench.consensus import measure, tables
    result = await measure(blocks, transactions, heights, rounds, validators)
    if as_json:
        emit_json(result)
    else:
        console.print(table(f"{validators} validators", ["", "measured"], tables(result)))


@app.command()
@runs
async def mining(
    miners: Annotated[str, typer.Option(help="Numbers of miners, separated by commas.")] = "2,4,8,16",
    sizes: Annotated[str, typer.Option(help="Sizes of models in MB; large ones with fewer miners.")] = "0.1,10,60",
    rounds: Annotated[int, typer.Option("--runs", help="Rounds of each measurement; the median counts.", min=1)] = 10,
    rows: Annotated[int, typer.Option(help="Rows of each miner.", min=10, max=1_000_000)] = 1_000,
    stock: Annotated[bool, typer.Option("--stock", help="Also the same apps on a stock Flower deployment.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Federated rounds with real processes: seconds, processor time, bytes, memory, and the deadline.

    Takes some minutes; standard error says what is being measured.

    Example: pofl bench mining --json

    Example: pofl bench mining --miners 2,4 --sizes 0.1 --runs 5 --stock
    """
    with source_tree():
        from bench.mining import measure, numbers, tables, whole
    counts, megabytes = whole(miners, "--miners"), numbers(sizes, "--sizes")
    result = await measure(counts, [int(1e6 * one) for one in megabytes], rounds, rows, stock)
    if as_json:
        emit_json(result)
        return
    columns = ["model MB", "miners", "s a round", "CPU s", "times one process", "MB sent", "miner's MB"]
    console.print(table(f"{rows} rows a miner", columns, tables(result), right=range(7)))
    late, early = result["deadline"]["late"], result["deadline"]["early"]["seconds"]
    console.print(f"deadline: the result is there {early:.2f} s before it; {late} late")


@app.command()
@runs
async def poison(
    attack: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This attack only; may be repeated.")] = None,
    algorithm: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This aggregation only; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of partition, first weights and shuffling.", min=0)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Hostile miners against every aggregation: practice accuracy after real training on the embedded digits.

    One hostile of four and two of eight, with the aggregation alone and with the practice floor. (In brackets): less than 95 %
    of the accuracy without them is left. Takes some minutes of processor time; standard error says what is being played.

    Example: pofl bench poison --json

    Example: pofl bench poison --attack times_9 --algorithm fedavg --algorithm krum
    """
    with source_tree():
        from bench.poison import ALGORITHMS, ATTACKS, measure, tables
    for given, known, option in ((attack, tuple(ATTACKS), "--attack"), (algorithm, ALGORITHMS, "--algorithm")):
        unknown = [name for name in given or () if name not in known]
        if unknown:
            raise ConfigError(f"{option}: {unknown[0]!r} is none of {', '.join(known)}")
    heeds_ctrl_c()
    result = measure(attack or tuple(ATTACKS), algorithm or ALGORITHMS, seed=seed, say=lambda text: typer.echo(text, err=True))
    if as_json:
        emit_json(result)
        return
    for title, columns, rows in tables(result):
        console.print(table(title, columns, rows, right=range(1, len(columns))))


@app.command()
@runs
async def marks(
    tries: Annotated[
        int, typer.Option(help="Reports by sellers who know nothing, and on buyers who leaked nothing.", min=1)
    ] = 100_000,
    leaks: Annotated[int, typer.Option(help="Leaks of each kind.", min=1)] = 100,
    rounds: Annotated[int, typer.Option("--runs", help="Models trained with and without marks.", min=2)] = 20,
    archive: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More data: an npz with x_train, y_train, x_test, y_test of 0..255.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of the archive that are sold.", min=300)] = 6_000,
    seed: Annotated[int, typer.Option(help="The same numbers again.", min=0)] = 20261122,
    as_json: JsonOption = False,
) -> None:
    """Marks in sold rows: accuracy that they cost, buyers framed, innocents convicted, leaks found after rounding and more.

    Takes minutes. Ends with exit code 1 if anybody was convicted wrongly or half a point of accuracy is lost on digits.

    Example: pofl bench marks --tries 100000 --json

    Example: pofl bench marks --tries 1000 --leaks 10 --archive mnist.npz
    """
    with source_tree():
        from bench.marks import measure, problems, tables
    heeds_ctrl_c()
    result = measure(tries, leaks, rounds, seed, archive, rows, lambda text: typer.echo(text, err=True))
    broken = problems(result)
    if as_json:
        emit_json(result | {"problems": broken})
    else:
        for title, columns, lines in tables(result):
            console.print(table(title, columns, lines, right=range(1, len(columns))))
        for text in broken:
            console.print(text)
    if broken:
        raise typer.Exit(1)


@app.command(name="consensus-sim")
@runs
async def consensus_sim(
    rounds: Annotated[int, typer.Option("--runs", help="How many networks.", min=1)] = 1_000,
    validators: Annotated[str, typer.Option(help="Sizes of network; small ones get most runs.")] = "4,7,16",
    seed: Annotated[int, typer.Option(help="The first seed; the next runs count up from it.", min=0)] = 0,
    jobs: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    again: Annotated[
        int | None, typer.Option("--replay", metavar="SEED", help="Show one run: who sent what when, and what was decided.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulated networks with loss, crashes, skewed clocks and up to f liars, judged by the rules of consensus.

    Ends with exit code 1 if any run breaks a rule; each failure names the command that shows it again.

    Example: pofl bench consensus-sim --runs 10000 --validators 4,7,16 --seed 0 --json

    Example: pofl bench consensus-sim --replay 17 --validators 4
    """
    with source_tree():
        from bench.consensus_sim import replay, simulate
    try:
        sizes = [int(word) for word in validators.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not set(sizes) <= {4, 7, 16}:
        raise ConfigError(f"--validators: some of 4, 7 and 16 separated by commas, got {validators!r}")
    if again is not None:
        trace, problem = replay(again, sizes[0])
        if as_json:
            emit_json({"seed": again, "validators": sizes[0], "trace": trace, "problem": problem})
        else:
            for line in trace:
                console.print(line, markup=False, highlight=False)
            if problem is not None:
                console.print(problem, markup=False, highlight=False)
        if problem is not None:
            raise typer.Exit(1)
        return
    heeds_ctrl_c()
    result = simulate(rounds, sizes, seed, jobs)
    if as_json:
        emit_json(result)
    else:
        shown: list[tuple[str, object]] = [("runs", result["runs"]), ("CPU seconds", result["cpu_seconds"])]
        shown += [(kind, count) for kind, count in result["by_kind"].items()]
        console.print(table(f"{len(result['failures'])} failures", ["", ""], [*shown, *enumerate(result["failures"])]))
    if result["failures"]:
        raise typer.Exit(1)


@app.command(name="fuzz")
@runs
async def fuzz_decoders(
    inputs: Annotated[int, typer.Option(help="How many, over all decoders; quick ones get more.", min=1)] = 100_000,
    seed: Annotated[int, typer.Option(help="An input is a function of seed, decoder and number.", min=0)] = 0,
    only: Annotated[list[str] | None, typer.Option(metavar="DECODER", help="This decoder only; may be repeated.")] = None,
    number: Annotated[int | None, typer.Option(help="This input only, of the decoders named.", min=0)] = None,
    jobs: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Broken inputs for everything that decodes what a peer or a user sent. Ends with exit code 1 if one is treated wrongly.

    Example: pofl bench fuzz --inputs 1000000 --seed 1 --json
    """
    with source_tree():
        from bench.fuzz import fuzz
    heeds_ctrl_c()
    result = fuzz(inputs, seed, only or (), jobs, number, lambda text: typer.echo(text, err=True))
    if as_json:
        emit_json(result)
    else:
        rows = [(name, *counts) for name, counts in result["by_decoder"].items()]
        title = f"{result['inputs']} inputs, {len(result['failures'])} failures"
        console.print(table(title, ["decoder", "inputs", "accepted", "refused"], rows, right=[1, 2, 3]))
        for text in result["failures"]:
            console.print(text, markup=False, highlight=False)
    if result["failures"]:
        raise typer.Exit(1)


@app.command()
@runs
async def chaos(
    kills: Annotated[int, typer.Option(help="How often a node is ended by SIGKILL.", min=1)] = 50,
    seed: Annotated[int | None, typer.Option(help="Of instants, victims and partitions; drawn where left out.", min=0)] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="SCENARIO", help="This one only; may be repeated.")] = None,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep logs and data there; must be new or empty.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Real nodes under kills, partitions, bad links, wrong clocks, full disks and floods, judged by the rules of consensus.

    Scenarios: kills, outage, network, namespaces, clocks, disk, flood. Takes about ten minutes; a small disk and namespaces
    take root and are passed over without it. Ends with exit code 1 if a rule is broken.

    Example: pofl bench chaos --kills 50 --seed 1 --json

    Example: pofl bench chaos --only kills --kills 5 --seed 1 --folder /tmp/chaos
    """
    with source_tree():
        from bench.chaos import SCENARIOS
        from bench.chaos import chaos as run_chaos
    unknown = [name for name in only or () if name not in SCENARIOS]
    if unknown:
        raise ConfigError(f"--only: no scenario {unknown[0]!r}, there are {', '.join(SCENARIOS)}")
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--folder: {folder} is not an empty folder")
    chosen = secrets.randbits(32) if seed is None else seed
    result = await run_chaos(kills, chosen, only or (), folder, lambda text: typer.echo(text, err=True))
    if as_json:
        emit_json(result)
    else:
        rows = [(n, k, v) for n, figures in result["scenarios"].items() for k, v in figures.items()]
        console.print(table(f"{len(result['problems'])} rules broken, seed {chosen}", ["scenario", "", "found"], rows))
        for text in result["problems"]:
            console.print(text, markup=False, highlight=False)
        if result["logs"]:
            console.print(f"logs are in {result['logs']}", markup=False, highlight=False)
    if result["problems"]:
        raise typer.Exit(1)


@app.command(name="leaking-pool")
@runs
async def leaking_pool(
    blocks: Annotated[int, typer.Option(help="Work blocks after the honest ones.", min=1)] = 10,
    honest: Annotated[int, typer.Option(help="Work blocks before the first leak.", min=1)] = 1,
    nodes: Annotated[int, typer.Option(help="Full nodes, all validators.", min=1, max=16)] = 3,
    seed: Annotated[int, typer.Option(help="Of the data; even: pool0 leaks, odd: pool1.", min=0)] = 1,
    slack: Annotated[float, typer.Option(help="Windows so many times longer: for a busy machine.", min=0.5, max=10)] = 1.0,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep logs and data there; must be new or empty.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What leaking costs a pool: a real testnet of two pools, alike but that one gives away the rows it buys.

    The provider reports each copy with its own command, the nodes judge. Ends with exit code 1 if a report is not proven, or
    the leaking pool's reputation and probability are not lower and its price not higher. Takes a minute a block.

    Example: pofl bench leaking-pool --blocks 10 --seed 1 --json
    """
    with source_tree():
        from bench.leaking_pool import Setting, measure, problems, tables
    found = await measure(Setting(blocks, honest, nodes, seed, slack), folder, _OnStderr())
    broken = problems(found)
    if as_json:
        emit_json(found | {"problems": broken})
    else:
        for title, columns, lines in tables(found):
            console.print(table(title, columns, lines, right=range(2, len(columns))))
        for text in broken:
            console.print(text, markup=False, highlight=False)
    if broken:
        raise typer.Exit(1)


class _OnStderr:
    """Events of a testnet as lines, beside the result (services.testnet.watch.Observer)."""

    def state(self, name: str, role: str, text: str) -> None:
        """Not shown."""

    def say(self, line: str) -> None:
        typer.echo(line, err=True)

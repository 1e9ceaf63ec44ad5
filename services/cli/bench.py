"""``pofl bench``: measurements on this machine. They live beside the product, in the source tree, and are not installed."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from core.errors import ConfigError
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json, table

__all__ = ["app"]

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure this machine."""


@app.command()
@runs
async def verification(
    samples: Annotated[str, typer.Option(help="Sizes of the test set, separated by commas.")] = "10000",
    layers: Annotated[str, typer.Option(help="Widths: features, hidden layers, classes.")] = "256,16,16,10",
    rounds: Annotated[int, typer.Option("--runs", help="How often each step is measured; the median counts.", min=1)] = 5,
    as_json: JsonOption = False,
) -> None:
    """Model verification with real services on loopback: audit, evaluation, encryption, garbling, transfer.

    Example: pofl bench verification --samples 10000 --layers 256,16,16,10 --json
    """
    try:
        from bench.verification_services import measure
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "bench":
            raise
        raise ConfigError("the measurements are not installed: run `pofl bench` in the source tree of PoFL") from None
    sizes, dims = _numbers("--samples", samples), tuple(_numbers("--layers", layers))
    # gRPC warns about certificates of this throw-away network on standard error; the result is one object on standard output.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    results = [await measure(size, dims, rounds) for size in sizes]
    if as_json:
        emit_json(results[0] if len(results) == 1 else {"layers": list(dims), "sizes": results})
        return
    for result in results:
        console.print(_table(result))


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
    try:
        from bench.exactness import measure
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "bench":
            raise
        raise ConfigError("the measurements are not installed: run `pofl bench` in the source tree of PoFL") from None
    result = measure(cases, seed)
    if as_json:
        emit_json(result)
    else:
        shown = [(name, value) for name, value in result.items() if name != "failures"]
        console.print(table(f"{cases} random models and test sets", ["", "found"], [*shown, *enumerate(result["failures"])]))
    if result["differences"]:
        raise typer.Exit(1)


def _numbers(option: str, text: str) -> list[int]:
    """Raises ConfigError."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"{option}: positive whole numbers separated by commas are needed, got {text!r}")
    return found


def _table(result: dict[str, Any]) -> object:
    evaluation, paper = result["evaluation"], result["paper"]["audit_seconds"]
    rows: list[tuple[str, object, str]] = [
        ("audit of one block, one full node", result["audit"]["seconds"], f"paper: {paper[0]} to {paper[1]} s, simulated"),
        ("audit again, her answer known", result["audit"]["again_seconds"], ""),
        ("16 nodes at once, all", result["audit16"]["seconds"], result["audit16"].get("note", "")),
        ("evaluation, online", evaluation["online_seconds"], "model final to N known"),
        ("evaluation, offline", evaluation["offline_seconds"], "while training runs"),
        ("encryption of the test set", result["encrypt"]["seconds"], f"{result['encrypt']['bytes']} bytes, once for a task"),
        ("garble and evaluate", result["garbling"]["seconds"], f"{result['garbling']['and_gates']} AND gates"),
        ("oblivious transfer", result["ot"]["seconds"], f"{result['ot']['transfers']} transfers"),
        ("TenSEAL's CKKS product, layer one", result["tenseal_ckks_mm"]["seconds"], result["tenseal_ckks_mm"]["note"]),
        ("forward pass in the clear", result["plaintext"]["seconds"], "numpy, float64"),
    ]
    title = f"{result['samples']} samples, {'-'.join(map(str, result['layers']))}, {result['cores']} cores"
    shown = [(name, "-" if seconds is None else f"{float(str(seconds)):.4f}", note) for name, seconds, note in rows]
    return table(title, ["step", "seconds", ""], shown, right=[1])

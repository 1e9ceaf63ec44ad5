"""How the command line ends: one sentence on standard error and a documented exit code, never a traceback."""

from __future__ import annotations

import asyncio
import functools
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import click

from core.errors import PoflError
from services.runtime.lifecycle import exit_code
from services.runtime.logging import shown

__all__ = ["heeds_ctrl_c", "runs", "usage_sentence"]

P = ParamSpec("P")
R = TypeVar("R")


def runs(command: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """A command written as a coroutine, run to its end, with errors of the tree as one sentence."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return asyncio.run(command(*args, **kwargs))
        except PoflError as error:
            sys.stderr.write(f"error: {shown(error)}\n")
            raise SystemExit(exit_code(error)) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    return wrapper


def heeds_ctrl_c() -> None:
    """Before a command computes without awaiting anything: asyncio would let the first Ctrl-C wait for the next await."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def usage_sentence(error: click.ClickException) -> str:
    """What was wrong with the words of a command line, and where its help is. Empty where the help itself was shown.

    Click says "'abc' is not a valid integer range" and "0 is not in the range 1<=x<=9"; here both say which numbers there are.
    """
    message = error.format_message()
    if not isinstance(error, click.UsageError) or not message:
        return message
    kind = error.param.type if isinstance(error, click.BadParameter) and error.param is not None else None
    if isinstance(kind, click.IntRange | click.FloatRange):
        numbers = _numbers(kind)
        message = re.sub(r"is not a valid (integer|float) range\.?$", f"is not {numbers}", message)
        message = re.sub(r"is not in the range [^ ]*$", f"is not {numbers}", message)
    elif isinstance(kind, click.types.IntParamType):
        message = re.sub(r"is not a valid integer\.?$", "is not a whole number", message)
    # With its own suggestion and typer's, click names a near command twice.
    message = re.sub(r"( Did you mean [^?]*\?)\1", r"\1", message)
    if error.ctx is None:
        return message
    end = "" if message.endswith(("?", ".")) else "."
    return f"{message}{end} `{error.ctx.command_path} --help` says what there is."


def _numbers(kind: click.IntRange | click.FloatRange) -> str:
    """``a whole number from 1 to 9``, as far as there are bounds."""
    what = "a whole number" if isinstance(kind, click.IntRange) else "a number"
    if kind.min is not None and kind.max is not None:
        return f"{what} from {kind.min} to {kind.max}"
    return f"{what} of at least {kind.min}" if kind.max is None else f"{what} of at most {kind.max}"

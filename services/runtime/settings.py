"""How a configuration is filled and printed: from dataclasses to TOML and back. See services.runtime.config."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from core.errors import ConfigError

__all__ = ["dump", "load", "option", "required", "section"]

C = TypeVar("C")
T = TypeVar("T")

ROLES = ("node", "pool", "miner", "requester", "provider", "platform", "explorer", "user")
# Environment variables of ours that are not configuration keys.
OTHER_VARIABLES = frozenset(
    {"POFL_CONFIG", "POFL_NET", "POFL_PARENT", "POFL_PASSPHRASE", "POFL_PASSPHRASE_FILE", "POFL_TEST_SEED"}
)
NO_FILE = "the configuration"
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def option(doc: str, *, default: T, low: float | None = None, high: float | None = None, secret: bool = False) -> T:
    """A field with a default. ``low`` and ``high`` are the inclusive range of a number; a ``secret`` is never printed."""
    return dataclasses.field(default=default, metadata={"doc": doc, "low": low, "high": high, "secret": secret})


def required(doc: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field that somebody has to set."""
    return dataclasses.field(metadata={"doc": doc, "low": low, "high": high})


def section(kind: type[T], doc: str) -> T:
    """A nested table; all of its keys must have defaults."""
    return dataclasses.field(default_factory=kind, metadata={"doc": doc})


def load(cls: type[C], file: Path | None, env: Mapping[str, str], overrides: Sequence[str] = ()) -> C:
    """The configuration. ``overrides`` are ``key.sub=value``, as from flags.

    Raises ConfigError, which names the key, where it came from, and for an unknown key the nearest known one.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        _merge_file(cls, file, tree)
    role = str(getattr(cls, "ROLE", "")).upper()
    general, own = _from_environment(role, env)
    for name, text in (*general, *own):
        _assign(cls, tree, tuple(name.lower().split("__")), text, f"environment variable {_spelled(role, name, env)}")
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ConfigError("--set needs KEY=VALUE, as in --set log.level=debug")
        # Without the value: under a mistyped key it may be a secret.
        _assign(cls, tree, tuple(path.strip().split(".")), text.strip(), f"--set {path.strip()}")
    return cast("C", _build(cls, tree, (), str(file) if file is not None else NO_FILE))


def dump(cfg: object) -> str:
    """The configuration as a TOML file that `load` reads back, with the meaning of each key.

    Of a secret it says only, in a comment, whether it is set: what is printed ends in terminals, logs and bug reports.
    """
    return "\n".join(_lines(cfg, ())).lstrip("\n") + "\n"


@dataclasses.dataclass(frozen=True)
class _Given:
    """A value with the place it came from."""

    value: object
    source: str
    base: Path
    text: bool


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _merge_file(cls: type, file: Path, tree: dict[str, Any]) -> None:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not TOML: byte {error.start} is not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    _merge(cls, table, tree, (), file)


def _merge(cls: type, table: Mapping[str, Any], tree: dict[str, Any], path: tuple[str, ...], file: Path) -> None:
    for name, value in table.items():
        kind = _known(cls, (*path, name), name, str(file))
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{_dotted((*path, name))} in {file} is a table, write [{_dotted((*path, name))}]")
            _merge(cast("type", kind), value, tree.setdefault(name, {}), (*path, name), file)
        else:
            tree[name] = _Given(value, str(file), file.resolve().parent, text=False)


def _from_environment(role: str, env: Mapping[str, str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Variables for every role, and those for this one, without their prefix."""
    general, own = [], []
    for variable, text in sorted(env.items()):
        if not variable.startswith("POFL_") or variable in OTHER_VARIABLES:
            continue
        name = variable.removeprefix("POFL_")
        if role and _is_for(role, name):
            own.append((name.removeprefix(f"{role}_"), text))
        elif not any(_is_for(other.upper(), name) for other in ROLES):
            general.append((name, text))
    return general, own


def _is_for(role: str, name: str) -> bool:
    """Whether a variable is for one role: two underscores would be a table of that name instead."""
    return name.startswith(f"{role}_") and not name.startswith(f"{role}__")


def _spelled(role: str, name: str, env: Mapping[str, str]) -> str:
    mine = f"POFL_{role}_{name}"
    return mine if mine in env else f"POFL_{name}"


def _assign(cls: type, tree: dict[str, Any], path: tuple[str, ...], text: str, source: str) -> None:
    kind: Any = cls
    for depth, name in enumerate(path):
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"{_dotted(path[:depth])} has no part {name!r} (from {source})")
        kind = _known(cast("type", kind), path[: depth + 1], name, source)
        if depth < len(path) - 1:
            tree = tree.setdefault(name, {}) if dataclasses.is_dataclass(kind) else tree
    if dataclasses.is_dataclass(kind):
        raise ConfigError(f"{_dotted(path)} is a table, set one of its keys (from {source})")
    tree[path[-1]] = _Given(text, source, Path.cwd(), text=True)


def _known(cls: type, path: tuple[str, ...], name: str, source: str) -> Any:
    """The type of a key. Raises ConfigError with the nearest known key if there is none of that name."""
    names = list(_fields(cls))
    if name in names:
        return _hints(cls)[name]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {_dotted((*path[:-1], near[0]))!r}?" if near else f"; known are {', '.join(sorted(names))}"
    raise ConfigError(f"unknown key {_dotted(path)!r} in {source}{hint}", key=_dotted(path), source=source)


def _build(cls: type, tree: Mapping[str, Any], path: tuple[str, ...], source: str) -> object:
    values: dict[str, object] = {}
    for name, field in _fields(cls).items():
        kind, here = _hints(cls)[name], (*path, name)
        if dataclasses.is_dataclass(kind):
            values[name] = _build(cast("type", kind), tree.get(name, {}), here, source)
        elif name in tree:
            values[name] = _convert(kind, tree[name], here, field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            doc = field.metadata.get("doc", "")
            hint = " Give --config FILE, or --set KEY=VALUE for each such key." if source == NO_FILE else ""
            raise ConfigError(f"{_dotted(here)} is not set in {source}. {doc}".rstrip() + hint, key=_dotted(here))
    built: object = cls(**values)
    check = getattr(built, "check", None)
    if check is not None:
        check()
    return built


def _convert(kind: Any, given: _Given, path: tuple[str, ...], metadata: Mapping[str, Any]) -> object:
    try:
        value = _typed(kind, given)
    except (ValueError, TypeError):
        if metadata.get("secret"):
            raise ConfigError(f"{_dotted(path)} must be {_described(kind)}, and is not", key=_dotted(path)) from None
        raise ConfigError(
            f"{_dotted(path)} must be {_described(kind)}, got {given.value!r} (from {given.source})", key=_dotted(path)
        ) from None
    for each in value if isinstance(value, tuple) else (value,):
        _check_range(each, path, metadata, given)
    return value


def _check_range(value: object, path: tuple[str, ...], metadata: Mapping[str, Any], given: _Given) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    # Written so that a NaN, which compares as false, is refused as well.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = (("at least", low), ("at most", high))
        wanted = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
        raise ConfigError(f"{_dotted(path)} must be {wanted}, got {value} (from {given.source})", key=_dotted(path))


def _typed(kind: Any, given: _Given) -> object:
    """``given`` as ``kind``. Raises ValueError or TypeError."""
    origin, value = get_origin(kind), given.value
    if origin in (Union, types.UnionType):
        choices = [choice for choice in get_args(kind) if choice is not type(None)]
        if given.text and value == "" and type(None) in get_args(kind):
            return None
        return _typed(choices[0], given)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError
        return value
    if origin is tuple:
        items = _items(str(value)) if given.text else value
        if not isinstance(items, list):
            raise TypeError
        return tuple(_typed(get_args(kind)[0], dataclasses.replace(given, value=item)) for item in items)
    if kind is Path:
        if not isinstance(value, str) or not value:
            raise TypeError
        return (given.base / Path(value).expanduser()).resolve()
    return _scalar(kind, value, given.text)


def _scalar(kind: Any, value: object, text: bool) -> object:
    if kind is bool:
        if text:
            return _BOOLEANS.get(str(value).lower()) if str(value).lower() in _BOOLEANS else _refuse()
        return value if isinstance(value, bool) else _refuse()
    if isinstance(value, bool):
        raise TypeError
    if kind is int:
        return int(str(value)) if text else (value if isinstance(value, int) else _refuse())
    if kind is float:
        return float(cast("float", value)) if text or isinstance(value, int | float) else _refuse()
    if kind is str:
        return value if isinstance(value, str) else _refuse()
    raise TypeError(f"configuration keys cannot be of type {kind}")


def _refuse() -> object:
    raise TypeError


def _items(text: str) -> list[Any]:
    """A list from one text: a TOML array, or values between commas."""
    if text.startswith("["):
        try:
            return list(tomllib.loads(f"x = {text}")["x"])
        except tomllib.TOMLDecodeError:
            raise ValueError(text) from None
    return [item.strip() for item in text.split(",") if item.strip()]


def _described(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _described(next(choice for choice in get_args(kind) if choice is not type(None)))
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if origin is tuple:
        return f"a list, each {_described(get_args(kind)[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return names.get(kind, str(kind))


def _lines(cfg: object, path: tuple[str, ...]) -> list[str]:
    """Plain keys first: in TOML what follows a table's head belongs to it."""
    lines: list[str] = []
    nested: list[str] = []
    for field in dataclasses.fields(cast("Any", cfg)):
        value = getattr(cfg, field.name)
        doc = field.metadata.get("doc", "")
        if dataclasses.is_dataclass(value):
            head = f"[{_dotted((*path, field.name))}]"
            nested += ["", *([f"# {doc}"] if doc else []), head, *_lines(value, (*path, field.name))]
            continue
        lines += [f"# {doc}"] if doc else []
        if field.metadata.get("secret") and value:
            lines.append(f"# {field.name} = (set, not shown)")
            continue
        lines.append(f"# {field.name} =" if value is None else f"{field.name} = {_toml(value)}")
    return lines + nested


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    text = str(value)
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'


def _dotted(path: Sequence[str]) -> str:
    return ".".join(path)

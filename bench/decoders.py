"""Every decoder that reads what a peer or a user sent, each with a maker of valid inputs and, where there is one, its encoder.

Records of core.codec and the pairs of services/rpc are found by looking, so that a new one is not forgotten; readers of other
forms are listed in ``_special``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import random
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from core import codec
from core.crypto import sealing
from core.endpoint import Endpoint
from core.errors import MalformedError, PoflError
from services.rpc.convert_mining import PHASES

__all__ = ["Decoder", "instance", "record_value", "records", "registry"]

PACKAGES = ("core", "services.rpc", "services.storage", "services.runtime", "node", "pool", "requester", "provider")
MISSING_BY_DESIGN = frozenset({"__main__"})


@dataclass(frozen=True)
class Decoder:
    """``decode`` returns, or raises a PoflError. ``encode`` gives back the only bytes of what was decoded.

    ``allocates``: bytes that one decoding may take beyond a multiple of its input: what the form documents as its limit.
    """

    name: str
    make: Callable[[random.Random], bytes]
    decode: Callable[[bytes], object]
    encode: Callable[[Any], bytes] | None = None
    again: Callable[[Any], object] | None = None
    """For forms with several encodings: what comes back after writing and reading once more."""
    allocates: int = 0


# -- finding -----------------------------------------------------------------------------------------------------------


@functools.cache
def modules() -> tuple[types.ModuleType, ...]:
    found = []
    for name in PACKAGES:
        package = importlib.import_module(name)
        found.append(package)
        names = [info.name for info in pkgutil.walk_packages(package.__path__, name + ".")]
        found += [importlib.import_module(n) for n in names if n.rpartition(".")[2] not in MISSING_BY_DESIGN]
    return tuple(found)


@functools.cache
def records() -> dict[str, type]:
    """Dataclasses all of whose fields name their codec, by module and name."""
    found = {}
    for module in modules():
        for name, kind in vars(module).items():
            if not (inspect.isclass(kind) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__):
                continue
            try:
                fields = codec._fields(kind)
                is_whole = bool(fields) and _has_codecs(kind)
            except (TypeError, NameError):
                continue
            if is_whole:
                found[f"{module.__name__}.{name}"] = kind
    return found


def _has_codecs(kind: type) -> bool:
    """Whether every record inside names its codecs too. Raises TypeError where one does not."""
    return all(_has_codecs(field.kind) for _, field in codec._fields(kind) if isinstance(field, codec.Record))


@functools.cache
def converters() -> dict[str, Callable[..., object]]:
    """Functions NAME_from_proto and NAME_from_bytes of services.rpc and elsewhere, by module and name."""
    found = {}
    for module in modules():
        for name, function in vars(module).items():
            is_ours = inspect.isfunction(function) and function.__module__ == module.__name__
            if is_ours and name.endswith("_from_proto") and not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = function
    return found


# -- valid values ------------------------------------------------------------------------------------------------------


INTERESTING = (0, 1, 2, 127, 128, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)


def _nested(kind: type, field: str, rng: random.Random) -> bytes | None:
    """Bytes that hold another record's encoding."""
    from core.chain import block, transaction, vote

    inner = {
        ("SignedVote", "vote"): vote.Vote, ("SignedVerdict", "verdict"): vote.Verdict, ("SignedProposal", "block"): block.Block,
        ("SignedProposal", "proposal"): vote.Proposal, ("SignedHeader", "header"): block.Header, ("Block", "body"): block.Body,
        ("SignedTransaction", "transaction"): transaction.Transaction,
    }.get((kind.__name__, field))  # fmt: skip
    return None if inner is None else codec.encode(record_value(inner, rng))


def _likely(name: str, rng: random.Random) -> Any:
    """What a field of this name is likely to hold, or None: random numbers alone would seldom pass the checks that follow."""
    from core.market.contract import DEFAULT_RULE

    if rng.random() < 0.2:
        return None
    match name:
        case "rule":
            return DEFAULT_RULE
        case "rows" | "features" | "samples" | "classes" | "width":
            return rng.randrange(2, 60)
        case "reputation_ppm" | "p_ppm":
            return rng.randrange(1_000_001)
        case "chunk":
            return rng.randrange(10)
    return None


def record_value(kind: type, rng: random.Random, depth: int = 0) -> Any:
    """A random valid value of a record."""
    for _ in range(50):
        values = {}
        for name, field in codec._fields(kind):
            data = _nested(kind, name, rng) if depth < 4 else None
            fits = isinstance(field, codec.Int) or (isinstance(field, codec.Record) and field.kind.__name__ == "IntegerRule")
            likely = _likely(name, rng) if fits and data is None else data
            values[name] = likely if likely is not None else codec_value(field, rng, depth + 1)
        try:
            return kind(**values)
        except PoflError:
            continue
    raise MalformedError(f"no valid {kind.__name__} found")


def codec_value(field: codec.Codec, rng: random.Random, depth: int) -> Any:
    match field:
        case codec.Int(size, signed):
            bits = 8 * size - (1 if signed else 0)
            value = rng.choice((rng.getrandbits(bits), rng.randrange(min(1000, 1 << bits)), rng.choice(INTERESTING)))
            return -1 if signed and rng.random() < 0.1 else value % (1 << bits)
        case codec.Fixed(size):
            return rng.randbytes(size)
        case codec.Var(limit):
            return rng.randbytes(rng.choice((0, 1, 8, 32, 64, 200)) % (limit + 1))
        case codec.Text(limit):
            return "".join(rng.choice("abc é7.:-") for _ in range(rng.randrange(12)))[: limit // 2]
        case Endpoint():
            return rng.choice(("node0", "127.0.0.1", "[::1]", "a-b.example")) + f":{rng.randrange(1, 65_536)}"
        case codec.Enum(kind):
            return rng.choice(list(kind))
        case codec.Maybe(inner):
            return codec_value(inner, rng, depth) if rng.random() < 0.6 and depth < 8 else None
        case codec.Seq(inner, limit):
            count = 0 if depth > 6 else rng.choice((0, 1, 1, 2, 3, 5))
            return tuple(codec_value(inner, rng, depth + 1) for _ in range(min(count, limit)))
        case codec.Record():
            return record_value(field.kind, rng, depth)
        case codec.Union():
            return record_value(rng.choice(list(field.members.values())), rng, depth)
    if type(field).__name__ == "_Bool":
        return rng.random() < 0.5
    if type(field).__name__ == "_SuiteCodec":
        return rng.choice(list(sealing.Suite))
    if type(field).__name__ == "_Double":
        return rng.uniform(-1e6, 1e6)
    raise TypeError(f"no values are known for {type(field).__name__}")


SIZES = {"Signature": 64}


def instance(hint: Any, rng: random.Random, name: str = "", depth: int = 0) -> Any:
    """A random value of a type hint, for values that are no records."""
    if hint is str and name == "phase":
        return rng.choice(sorted(PHASES))
    if hint is str and name.endswith("endpoint"):
        return codec_value(Endpoint(), rng, depth)
    if hint is int and name == "chunk":
        return rng.randrange(10)
    if hasattr(hint, "__supertype__"):
        if hint.__supertype__ is bytes or getattr(hint.__supertype__, "__supertype__", None) is bytes:
            return rng.randbytes(SIZES.get(hint.__name__, 32))
        return instance(hint.__supertype__, rng, name, depth)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        marked = next((m for m in hint.__metadata__ if hasattr(m, "read")), None)
        return instance(args[0], rng, name, depth) if marked is None else codec_value(marked, rng, depth)
    if origin in (types.UnionType, typing.Union):
        return instance(rng.choice(args), rng, name, depth + 1)
    if origin in (tuple, list) or (origin is not None and "Sequence" in str(origin)):
        if origin is tuple and args[-1] is not Ellipsis:
            return tuple(instance(a, rng, name, depth + 1) for a in args)
        return tuple(instance(args[0], rng, name, depth + 1) for _ in range(0 if depth > 5 else rng.randrange(4)))
    if hint is type(None):
        return None
    if inspect.isclass(hint):
        if issubclass(hint, IntEnum):
            return rng.choice(list(hint))
        if hint is bool:
            return rng.random() < 0.5
        if hint is int:
            return rng.choice((rng.randrange(1000), rng.randrange(1, 4), rng.getrandbits(31)))
        if hint is float:
            return rng.random()
        if hint is bytes:
            return rng.randbytes(32)
        if hint is str:
            return rng.choice(("", "pool", "127.0.0.1:7000", "digits"))
        if dataclasses.is_dataclass(hint):
            try:
                return record_value(hint, rng, depth)
            except TypeError:
                hints = typing.get_type_hints(hint, include_extras=True)
                return hint(
                    **{f.name: instance(hints[f.name], rng, f.name, depth + 1) for f in dataclasses.fields(hint) if f.init}
                )
    raise TypeError(f"no values are known for {hint}")


def random_message(kind: type[Message], rng: random.Random, depth: int = 0) -> Any:
    """A protobuf message with random fields of likely sizes."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if rng.random() < 0.15:
            continue
        many = field.is_repeated
        for _ in range(rng.randrange(3) if many else 1):
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                if depth < 4:
                    inner = random_message(cast(Any, field.message_type)._concrete_class, rng, depth + 1)
                    getattr(message, field.name).append(inner) if many else getattr(message, field.name).CopyFrom(inner)
                continue
            value = _scalar(field, rng)
            getattr(message, field.name).append(value) if many else setattr(message, field.name, value)
    return message


def _scalar(field: Any, rng: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((32, 32, 32, 64, 0, 1, 40)))
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(("", "pool", "127.0.0.1:7000"))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return rng.choice((0.0, 0.5, float("nan"), float("inf"), -1e300))
    bits = 31 if "32" in str(field.type) or field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32) else 62
    return rng.choice((0, 1, 7, rng.getrandbits(bits)))


# -- the registry ------------------------------------------------------------------------------------------------------


@functools.cache
def registry() -> dict[str, Decoder]:
    from bench.decoders_special import special

    found = {d.name: d for d in (*_records(), *_converters(), *special())}
    return dict(sorted(found.items()))


def _records() -> Iterator[Decoder]:
    for name, kind in records().items():

        def make(rng: random.Random, kind: type = kind) -> bytes:
            return codec.encode(record_value(kind, rng))

        yield Decoder(name, make, functools.partial(codec.decode, kind), codec.encode)


def _converters() -> Iterator[Decoder]:
    for name, function in converters().items():
        hints = typing.get_type_hints(function)
        parameters = list(inspect.signature(function).parameters)
        message = hints[parameters[0]]
        if not (inspect.isclass(message) and issubclass(message, Message)):
            continue
        module = importlib.import_module(function.__module__)
        back = getattr(module, function.__name__.removesuffix("_from_proto") + "_to_proto", None)
        rest = tuple(instance(hints[p], random.Random(p), p) for p in parameters[1:])
        yield _converter(name, function, message, back, rest)


def _converter(
    name: str,
    function: Callable[..., object],
    message: type[Message],
    back: Callable[..., Message] | None,
    rest: tuple[Any, ...],
) -> Decoder:
    value_hint = None
    if back is not None:
        hints = typing.get_type_hints(back, include_extras=True)
        parameters = list(inspect.signature(back).parameters)
        value_hint = hints[parameters[0]] if len(parameters) == 1 else None

    def make(rng: random.Random) -> bytes:
        if value_hint is not None and back is not None and rng.random() < 0.8:
            try:
                return back(instance(value_hint, rng)).SerializeToString()
            except (PoflError, TypeError, ValueError, AttributeError, KeyError):
                pass  # a value that no peer could have: random fields will do
        return bytes(random_message(message, rng).SerializeToString())

    def decode(data: bytes) -> object:
        try:
            parsed = message.FromString(data)
        except DecodeError as error:
            raise MalformedError(str(error)) from None  # gRPC refuses it before any of our code sees it
        return function(parsed, *rest)

    def again(value: object) -> object:
        assert back is not None
        return function(back(value), *rest)

    return Decoder(name, make, decode, None, again if value_hint is not None else None)

"""Compare the contracts in ``proto/`` with those of the last release: what would break a program that was built from those?

::

    python -m tools.proto_breaking              exit 1 with one line for each thing that is broken
    python -m tools.proto_breaking --release    these contracts are the release: write proto/released.binpb

Both the wire and the source count: a field that is renamed keeps its bytes, and breaks every script that names it. What is
removed must leave its number and its name reserved, so that neither comes back with another meaning.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from google.protobuf import descriptor_pb2 as pb

from tools.proto_set import PROTO, ContractError, Exceptions, Finding, compiled, messages, without

__all__ = ["ALLOWED", "RELEASED", "breaks", "released"]

RELEASED: Final = PROTO / "released.binpb"
"""A FileDescriptorSet without comments."""
ALLOWED: Final[Exceptions] = {}
"""Breaks since the last release that were decided, each with its reason; `make proto-release` empties the need for them."""

_KIND = pb.FieldDescriptorProto.Type
_LABEL = pb.FieldDescriptorProto.Label


def breaks(old: pb.FileDescriptorSet, new: pb.FileDescriptorSet) -> list[Finding]:
    """What a program built from ``old`` finds broken with ``new``; allowances not applied."""
    was, now = _types(old), _types(new)
    found: list[Finding] = []
    for name, kind in was.items():
        other = now.get(name)
        if type(other) is not type(kind):
            rule = f"{_word(kind).upper()}_REMOVED"
            found.append(Finding(name, rule, f"{_word(kind)} is gone" if other is None else f"is a {_word(other)} now"))
        elif isinstance(kind, pb.DescriptorProto) and isinstance(other, pb.DescriptorProto):
            found += _message(name, kind, other)
        elif isinstance(kind, pb.EnumDescriptorProto) and isinstance(other, pb.EnumDescriptorProto):
            found += _enum(name, kind, other)
        elif isinstance(kind, pb.ServiceDescriptorProto) and isinstance(other, pb.ServiceDescriptorProto):
            found += _service(name, kind, other)
    return sorted(found)


_Type = pb.DescriptorProto | pb.EnumDescriptorProto | pb.ServiceDescriptorProto


def _types(contracts: pb.FileDescriptorSet) -> dict[str, _Type]:
    found: dict[str, _Type] = {}
    for file in contracts.file:
        found.update({f"{file.package}.{each.name}": each for each in file.enum_type})
        found.update({f"{file.package}.{each.name}": each for each in file.service})
        for name, message in messages(file):
            found[name] = message
            found.update({f"{name}.{each.name}": each for each in message.enum_type})
    return found


def _word(kind: _Type) -> str:
    return type(kind).__name__.removesuffix("DescriptorProto").lower() or "message"


def _message(name: str, old: pb.DescriptorProto, new: pb.DescriptorProto) -> Iterator[Finding]:
    fields = {field.number: field for field in new.field}
    numbers = _reserved(new.reserved_range)
    for field in old.field:
        other = fields.get(field.number)
        if other is None:
            yield from _removed("FIELD", f"{name}.{field.name}", field.number, field.name, numbers, new.reserved_name)
        else:
            yield from _field(f"{name}.{field.name}", old, field, new, other)
    yield from _unreserved(name, _reserved(old.reserved_range) - numbers, set(old.reserved_name) - set(new.reserved_name))
    oneofs = {each.name for each in new.oneof_decl}
    for each in old.oneof_decl:
        if each.name not in oneofs and not each.name.startswith("_"):
            yield Finding(f"{name}.{each.name}", "ONEOF_REMOVED", "oneof is gone")


def _field(
    where: str, old: pb.DescriptorProto, field: pb.FieldDescriptorProto, new: pb.DescriptorProto, other: pb.FieldDescriptorProto
) -> Iterator[Finding]:
    was, now = _type(old, field), _type(new, other)
    if field.name != other.name and was != now:
        message = f"number {field.number} was {was} {field.name} and is {now} {other.name}: a number is never used again"
        yield Finding(where, "FIELD_NUMBER_REUSED", message)
        return
    if field.name != other.name:
        yield Finding(where, "FIELD_RENAMED", f"number {field.number} is {other.name} now")
    if was != now:
        yield Finding(where, "FIELD_TYPE_CHANGED", f"was {was}, is {now}")
    if field.label != other.label:
        yield Finding(where, "FIELD_LABEL_CHANGED", f"was {_LABEL.Name(field.label)}, is {_LABEL.Name(other.label)}")
    if _oneof(old, field) != _oneof(new, other):
        homes = [_oneof(*each) or "no oneof" for each in ((old, field), (new, other))]
        yield Finding(where, "FIELD_ONEOF_CHANGED", f"was in {homes[0]}, is in {homes[1]}")
    if field.proto3_optional != other.proto3_optional:
        yield Finding(
            where, "FIELD_PRESENCE_CHANGED", "is optional now" if other.proto3_optional else "is not optional any more"
        )
    if field.json_name != other.json_name and field.name == other.name:
        yield Finding(where, "FIELD_JSON_NAME_CHANGED", f"was {field.json_name}, is {other.json_name}")


def _enum(name: str, old: pb.EnumDescriptorProto, new: pb.EnumDescriptorProto) -> Iterator[Finding]:
    values: dict[int, set[str]] = {}
    for value in new.value:
        values.setdefault(value.number, set()).add(value.name)
    numbers = _reserved(new.reserved_range, last=1)
    for value in old.value:
        where = f"{name}.{value.name}"
        if value.number not in values:
            yield from _removed("ENUM_VALUE", where, value.number, value.name, numbers, new.reserved_name)
        elif value.name not in values[value.number]:
            yield Finding(
                where, "ENUM_VALUE_RENAMED", f"number {value.number} is {', '.join(sorted(values[value.number]))} now"
            )
    gone = _reserved(old.reserved_range, last=1) - numbers
    yield from _unreserved(name, gone, set(old.reserved_name) - set(new.reserved_name))


def _service(name: str, old: pb.ServiceDescriptorProto, new: pb.ServiceDescriptorProto) -> Iterator[Finding]:
    methods = {each.name: each for each in new.method}
    for rpc in old.method:
        where, other = f"{name}.{rpc.name}", methods.get(rpc.name)
        if other is None:
            yield Finding(where, "RPC_REMOVED", "rpc is gone")
            continue
        for rule, was, now in (
            ("RPC_REQUEST_CHANGED", rpc.input_type, other.input_type),
            ("RPC_RESPONSE_CHANGED", rpc.output_type, other.output_type),
            ("RPC_STREAM_CHANGED", _mode(rpc), _mode(other)),
        ):
            if was != now:
                yield Finding(where, rule, f"was {was.lstrip('.')}, is {now.lstrip('.')}")


def _removed(
    kind: str, where: str, number: int, name: str, numbers: frozenset[int] | set[int], names: Iterable[str]
) -> Iterator[Finding]:
    if number not in numbers:
        yield Finding(where, f"{kind}_REMOVED", f"is gone and number {number} is not reserved: add `reserved {number};`")
    if name not in names:
        yield Finding(where, f"{kind}_NAME_NOT_RESERVED", f'is gone and its name is not reserved: add `reserved "{name}";`')


def _unreserved(where: str, numbers: set[int], names: set[str]) -> Iterator[Finding]:
    if numbers or names:
        gone = ", ".join([*map(str, sorted(numbers)), *sorted(names)])
        yield Finding(where, "RESERVED_REMOVED", f"does not reserve {gone} any more")


def _reserved(
    ranges: Iterable[pb.DescriptorProto.ReservedRange | pb.EnumDescriptorProto.EnumReservedRange], last: int = 0
) -> set[int]:
    """The numbers; a message's range ends before its end, an enum's with it."""
    return {number for each in ranges for number in range(each.start, min(each.end + last, each.start + 10_000))}


def _type(message: pb.DescriptorProto, field: pb.FieldDescriptorProto) -> str:
    """As it is written, maps with what they hold."""
    entries: Mapping[str, pb.DescriptorProto] = {each.name: each for each in message.nested_type if each.options.map_entry}
    entry = entries.get(field.type_name.rpartition(".")[2]) if field.type == _KIND.TYPE_MESSAGE else None
    if entry is not None:
        return f"map<{', '.join(_type(entry, each) for each in entry.field)}>"
    return field.type_name.lstrip(".") or _KIND.Name(field.type).removeprefix("TYPE_").lower()


def _oneof(message: pb.DescriptorProto, field: pb.FieldDescriptorProto) -> str:
    if not field.HasField("oneof_index") or field.proto3_optional:
        return ""
    return message.oneof_decl[field.oneof_index].name


def _mode(rpc: pb.MethodDescriptorProto) -> str:
    sides = ("stream" if streams else "one" for streams in (rpc.client_streaming, rpc.server_streaming))
    return "{} to {}".format(*sides)


def released() -> pb.FileDescriptorSet:
    """The contracts of the last release. Raises ContractError."""
    try:
        return pb.FileDescriptorSet.FromString(RELEASED.read_bytes())
    except (OSError, ValueError) as error:
        raise ContractError(f"cannot read {RELEASED.name}: {error}; `make proto-release` writes it") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the contracts with those of the last release.")
    parser.add_argument("--release", action="store_true", help="these contracts are the release: write proto/released.binpb")
    release = parser.parse_args().release
    try:
        now = compiled(PROTO)
        if release:
            for file in now.file:
                file.ClearField("source_code_info")
            RELEASED.write_bytes(now.SerializeToString(deterministic=True))
            return
        left = without(breaks(released(), now), ALLOWED)
    except ContractError as error:
        sys.exit(str(error))
    if left:
        sys.exit(
            "\n".join(
                [*map(str, left), f"{len(left)} breaks since the last release (tools/proto_breaking.py says how to go on)"]
            )
        )


if __name__ == "__main__":
    main()

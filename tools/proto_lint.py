"""Check the contracts in ``proto/`` against rules in the style of buf's STANDARD set, and that every rpc says who calls it.

::

    python -m tools.proto_lint            exit 1 with one line for each finding

A rule's name is buf's where buf has the rule. RPC_CALLER and RESERVED_RANGE are ours.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Final

from google.protobuf import descriptor_pb2 as pb

from tools.proto_set import PROTO, ContractError, Exceptions, Finding, compiled, messages, without

__all__ = ["CALLERS", "EXCEPTIONS", "findings"]

CALLERS: Final = (
    "Anyone", "A node", "A pool", "A miner", "A member", "A requester", "A validator", "Its owner", "The operator",
    "The roles", "Roles that", "The same",
)  # fmt: skip
"""How the comment of an rpc begins."""
LEAST_COMMENT: Final = 30
LARGEST_RANGE: Final = 100

_DIALOGUE: Final = "one stream of envelopes is one session of any kind: its messages are the oneof in Envelope"
EXCEPTIONS: Final[Exceptions] = {
    ("RPC_RESPONSE_STANDARD_NAME", "pofl.blob.v1.BlobService.Read"): "a chunk is the same both ways: Write sends it too",
    **{
        (rule, f"pofl.verify.v1.VerifyService.{rpc}"): _DIALOGUE
        for rule in ("RPC_REQUEST_STANDARD_NAME", "RPC_RESPONSE_STANDARD_NAME", "RPC_REQUEST_RESPONSE_UNIQUE")
        for rpc in ("Evaluate", "Audit", "CheckStored")
    },
}

_PASCAL: Final = re.compile(r"[A-Z][A-Za-z0-9]*")
_LOWER_SNAKE: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_UPPER_SNAKE: Final = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_PACKAGE: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_VERSION: Final = re.compile(r"v[1-9][0-9]*((alpha|beta)[1-9][0-9]*)?")
_SERVICE, _METHOD = 6, 2
"""Field numbers on the path of a comment."""


def findings(contracts: pb.FileDescriptorSet) -> list[Finding]:
    """Everything that breaks a rule, exceptions not applied."""
    found = [each for file in contracts.file for each in (*_of_file(file), *_of_types(file), *_of_services(file))]
    rpcs = [rpc for file in contracts.file for service in file.service for rpc in service.method]
    uses = Counter(kind for rpc in rpcs for kind in (rpc.input_type, rpc.output_type))
    for file in contracts.file:
        for service in file.service:
            for rpc in service.method:
                shared = sorted({kind.lstrip(".") for kind in (rpc.input_type, rpc.output_type) if uses[kind] > 1})
                if shared:
                    where = f"{file.package}.{service.name}.{rpc.name}"
                    found.append(Finding(where, "RPC_REQUEST_RESPONSE_UNIQUE", f"{', '.join(shared)} serves another rpc too"))
    return sorted(found)


def _of_file(file: pb.FileDescriptorProto) -> Iterator[Finding]:
    where, parts = file.name, file.package.split(".")
    folder, _, name = file.name.rpartition("/")
    if not file.package:
        yield Finding(where, "PACKAGE_DEFINED", "has no package")
    elif not _PACKAGE.fullmatch(file.package):
        yield Finding(where, "PACKAGE_LOWER_SNAKE_CASE", f"package {file.package} is not lower_snake.case")
    if folder.split("/") != parts:
        yield Finding(where, "PACKAGE_DIRECTORY_MATCH", f"package {file.package} must be in {'/'.join(parts)}/")
    if not _VERSION.fullmatch(parts[-1]):
        yield Finding(where, "PACKAGE_VERSION_SUFFIX", f"package {file.package} does not end with a version, as .v1")
    if not _LOWER_SNAKE.fullmatch(name.removesuffix(".proto")):
        yield Finding(where, "FILE_LOWER_SNAKE_CASE", f"{name} is not lower_snake_case.proto")
    if file.syntax != "proto3":
        yield Finding(where, "SYNTAX_SPECIFIED", 'does not say syntax = "proto3"')
    for index in file.public_dependency:
        yield Finding(where, "IMPORT_NO_PUBLIC", f"imports {file.dependency[index]} publicly")
    for index in file.weak_dependency:
        yield Finding(where, "IMPORT_NO_WEAK", f"imports {file.dependency[index]} weakly")
    used = {field.type_name for _, message in messages(file) for field in message.field}
    used |= {kind for service in file.service for rpc in service.method for kind in (rpc.input_type, rpc.output_type)}
    used |= {field.type_name for _, message in messages(file) for entry in message.nested_type for field in entry.field}
    for path in file.dependency:
        package = "." + path.rpartition("/")[0].replace("/", ".") + "."
        if not any(kind.startswith(package) for kind in used):
            yield Finding(where, "IMPORT_USED", f"imports {path} and uses nothing of it")


def _of_types(file: pb.FileDescriptorProto) -> Iterator[Finding]:
    enums = [(f"{file.package}.{each.name}", each) for each in file.enum_type]
    for name, message in messages(file):
        enums += [(f"{name}.{each.name}", each) for each in message.enum_type]
        if not _PASCAL.fullmatch(message.name):
            yield Finding(name, "MESSAGE_PASCAL_CASE", "is not PascalCase")
        for field in message.field:
            if not _LOWER_SNAKE.fullmatch(field.name):
                yield Finding(f"{name}.{field.name}", "FIELD_LOWER_SNAKE_CASE", "is not lower_snake_case")
        for oneof in message.oneof_decl:
            # protoc makes one for each optional field.
            if not oneof.name.startswith("_") and not _LOWER_SNAKE.fullmatch(oneof.name):
                yield Finding(f"{name}.{oneof.name}", "ONEOF_LOWER_SNAKE_CASE", "is not lower_snake_case")
        for span in message.reserved_range:
            if span.end - span.start > LARGEST_RANGE:
                many = f"{span.start} to {span.end - 1}"
                yield Finding(name, "RESERVED_RANGE", f"reserves {many}: numbers that never were in use are not retired")
    for name, enum in enums:
        yield from _of_enum(name, enum)


def _of_enum(name: str, enum: pb.EnumDescriptorProto) -> Iterator[Finding]:
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", enum.name).upper() + "_"
    if not _PASCAL.fullmatch(enum.name):
        yield Finding(name, "ENUM_PASCAL_CASE", "is not PascalCase")
    if enum.options.allow_alias:
        yield Finding(name, "ENUM_NO_ALLOW_ALIAS", "allows two names for one number")
    for value in enum.value:
        where = f"{name}.{value.name}"
        if not _UPPER_SNAKE.fullmatch(value.name):
            yield Finding(where, "ENUM_VALUE_UPPER_SNAKE_CASE", "is not UPPER_SNAKE_CASE")
        if not value.name.startswith(prefix):
            yield Finding(where, "ENUM_VALUE_PREFIX", f"does not begin with {prefix}")
        if value.number == 0 and not value.name.endswith("_UNSPECIFIED"):
            yield Finding(where, "ENUM_ZERO_VALUE_SUFFIX", "is 0 and does not end with _UNSPECIFIED")
    if enum.value[0].number != 0:
        yield Finding(name, "ENUM_FIRST_VALUE_ZERO", f"begins with {enum.value[0].number}, not with 0")


def _of_services(file: pb.FileDescriptorProto) -> Iterator[Finding]:
    places = {tuple(place.path): place for place in file.source_code_info.location}
    for number, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        if not _PASCAL.fullmatch(service.name):
            yield Finding(name, "SERVICE_PASCAL_CASE", "is not PascalCase")
        if not service.name.endswith("Service"):
            yield Finding(name, "SERVICE_SUFFIX", "does not end with Service")
        for index, rpc in enumerate(service.method):
            where = f"{name}.{rpc.name}"
            place = places.get((_SERVICE, number, _METHOD, index), pb.SourceCodeInfo.Location(span=[0]))
            line = f"{file.name}:{place.span[0] + 1}"
            comment = " ".join(place.leading_comments.split())
            if not comment.startswith(CALLERS) or len(comment) <= LEAST_COMMENT:
                message = (
                    f"its comment does not begin with who calls it ({', '.join(CALLERS)}), or says too little: {comment!r}"
                )
                yield Finding(where, "RPC_CALLER", message, line)
            if not _PASCAL.fullmatch(rpc.name):
                yield Finding(where, "RPC_PASCAL_CASE", "is not PascalCase", line)
            for rule, kind, suffix in (
                ("RPC_REQUEST_STANDARD_NAME", rpc.input_type, "Request"),
                ("RPC_RESPONSE_STANDARD_NAME", rpc.output_type, "Response"),
            ):
                allowed = {f".{file.package}.{stem}{suffix}" for stem in (rpc.name, service.name + rpc.name)}
                if kind not in allowed:
                    yield Finding(where, rule, f"{kind.lstrip('.')} is not named {rpc.name}{suffix}", line)


def main() -> None:
    try:
        left = without(findings(compiled(PROTO)), EXCEPTIONS)
    except ContractError as error:
        sys.exit(str(error))
    if left:
        sys.exit("\n".join(map(str, left)))


if __name__ == "__main__":
    main()

"""The contracts as descriptors: what protoc reads in them, with comments and lines."""

from __future__ import annotations

import importlib.resources
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb

__all__ = ["PROTO", "ContractError", "Exceptions", "Finding", "compiled", "messages", "without"]

PROTO = Path(__file__).resolve().parent.parent / "proto"

Exceptions = dict[tuple[str, str], str]
"""Reason by rule and element."""


class ContractError(Exception):
    """protoc refuses the contracts."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What is wrong with one element."""

    where: str
    """Full name of the element, or the file."""
    rule: str
    message: str
    line: str = ""
    """``file:line``, where it is known."""

    def __str__(self) -> str:
        return f"{self.line or self.where}: {self.where}: {self.message} [{self.rule}]"


def compiled(source: Path) -> pb.FileDescriptorSet:
    """All contracts below ``source``, with comments. Raises ContractError."""
    from grpc_tools import protoc

    contracts = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.proto"))
    if not contracts:
        raise ContractError(f"no contract below {source}")
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set"
        options = [f"-I{source}", f"-I{well_known}", f"--descriptor_set_out={target}", "--include_source_info"]
        if protoc.main(["protoc", *options, *contracts]) != 0:
            raise ContractError("protoc refused the contracts; its message is above")
        return pb.FileDescriptorSet.FromString(target.read_bytes())


def messages(file: pb.FileDescriptorProto) -> Iterator[tuple[str, pb.DescriptorProto]]:
    """Full name and descriptor of every message of a file, nested ones too; not those that protoc makes for maps."""
    waiting = [(f"{file.package}.{each.name}", each) for each in file.message_type]
    while waiting:
        name, message = waiting.pop(0)
        if not message.options.map_entry:
            yield name, message
        waiting += [(f"{name}.{each.name}", each) for each in message.nested_type]


def without(findings: list[Finding], exceptions: Exceptions) -> list[Finding]:
    """What is left; an exception that excuses nothing is itself a finding, so that the list stays true."""
    used = {(each.rule, each.where) for each in findings}
    left = [each for each in findings if (each.rule, each.where) not in exceptions]
    stale = [key for key in exceptions if key not in used]
    return sorted(left + [Finding(where, "STALE_EXCEPTION", f"nothing breaks {rule} here any more") for rule, where in stale])

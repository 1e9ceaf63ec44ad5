"""Contracts do not break what was released, and each kind of break is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import proto_breaking
from tools.proto_set import PROTO, compiled, without

OLD = """syntax = "proto3";
package pofl.example.v1;
service ExampleService {
  rpc Get(GetRequest) returns (GetResponse);
  rpc Watch(GetRequest) returns (stream GetResponse);
}
message GetRequest {
  reserved 8;
  reserved "older";
  uint64 height = 1;
  oneof key { uint32 number = 2; bytes digest = 3; }
}
message GetResponse {
  Kind kind = 1;
  map<string, uint32> counts = 2;
  optional uint32 rows = 3;
  repeated bytes ids = 4;
  message Part { bytes data = 1; }
  Part part = 5;
}
message Other {}
enum Kind {
  KIND_UNSPECIFIED = 0;
  KIND_TASK = 1;
  KIND_WORK = 2;
}
"""


def breaks(folder: Path, new: str) -> dict[str, set[str]]:
    """Rule to elements."""
    sets = []
    for name, text in (("old", OLD), ("new", new)):
        file = folder / name / "pofl" / "example" / "v1" / "example.proto"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        sets.append(compiled(folder / name))
    found: dict[str, set[str]] = {}
    for each in proto_breaking.breaks(*sets):
        found.setdefault(each.rule, set()).add(each.where.removeprefix("pofl.example.v1."))
    return found


def test_the_contracts_break_nothing_that_was_released() -> None:
    left = without(proto_breaking.breaks(proto_breaking.released(), compiled(PROTO)), proto_breaking.ALLOWED)
    assert [str(each) for each in left] == []


@pytest.mark.parametrize(
    ("rule", "where", "before", "after"),
    [
        ("FIELD_REMOVED", "GetRequest.height", "  uint64 height = 1;\n", ""),
        ("FIELD_NAME_NOT_RESERVED", "GetRequest.height", "  uint64 height = 1;\n", "  reserved 1;\n"),
        ("FIELD_RENAMED", "GetRequest.height", "height = 1", "first = 1"),
        ("FIELD_NUMBER_REUSED", "GetRequest.height", "uint64 height = 1", "bytes tip = 1"),
        ("FIELD_TYPE_CHANGED", "GetRequest.height", "uint64 height", "sint64 height"),
        ("FIELD_TYPE_CHANGED", "GetResponse.counts", "map<string, uint32>", "map<string, uint64>"),
        ("FIELD_TYPE_CHANGED", "GetResponse.part", "  Part part = 5", "  Other part = 5"),
        ("FIELD_TYPE_CHANGED", "GetResponse.Part.data", "bytes data", "string data"),
        ("FIELD_LABEL_CHANGED", "GetResponse.ids", "repeated bytes ids", "bytes ids"),
        ("FIELD_ONEOF_CHANGED", "GetRequest.digest", "bytes digest = 3; }", "}  bytes digest = 3;"),
        ("FIELD_PRESENCE_CHANGED", "GetResponse.rows", "optional uint32", "uint32"),
        ("FIELD_JSON_NAME_CHANGED", "GetRequest.height", "height = 1", 'height = 1 [json_name = "tall"]'),
        ("ONEOF_REMOVED", "GetRequest.key", "oneof key", "oneof choice"),
        ("RESERVED_REMOVED", "GetRequest", "  reserved 8;\n", ""),
        ("RESERVED_REMOVED", "GetRequest", '  reserved "older";\n', ""),
        ("MESSAGE_REMOVED", "Other", "message Other {}\n", ""),
        ("MESSAGE_REMOVED", "Other", "message Other {}\n", "enum Other { OTHER_UNSPECIFIED = 0; }\n"),
        ("ENUM_VALUE_REMOVED", "Kind.KIND_WORK", "  KIND_WORK = 2;\n", ""),
        ("ENUM_VALUE_NAME_NOT_RESERVED", "Kind.KIND_WORK", "  KIND_WORK = 2;\n", "  reserved 2;\n"),
        ("ENUM_VALUE_RENAMED", "Kind.KIND_TASK", "KIND_TASK", "KIND_JOB"),
        ("ENUM_REMOVED", "Kind", "Kind", "Sort"),
        ("SERVICE_REMOVED", "ExampleService", "ExampleService", "SampleService"),
        ("RPC_REMOVED", "ExampleService.Watch", "rpc Watch", "rpc Follow"),
        ("RPC_REQUEST_CHANGED", "ExampleService.Get", "rpc Get(GetRequest)", "rpc Get(Other)"),
        ("RPC_RESPONSE_CHANGED", "ExampleService.Get", "returns (GetResponse)", "returns (Other)"),
        ("RPC_STREAM_CHANGED", "ExampleService.Watch", "returns (stream GetResponse)", "returns (GetResponse)"),
        ("RPC_STREAM_CHANGED", "ExampleService.Get", "rpc Get(GetRequest)", "rpc Get(stream GetRequest)"),
    ],
)
def test_each_break_is_named(tmp_path: Path, rule: str, where: str, before: str, after: str) -> None:
    assert before in OLD
    found = breaks(tmp_path, OLD.replace(before, after))
    assert where in found.get(rule, set())


def test_what_is_added_or_retired_in_order_breaks_nothing(tmp_path: Path) -> None:
    new = OLD.replace("  uint64 height = 1;\n", '  reserved 1;\n  reserved "height";\n  uint32 more = 9;\n')
    new = new.replace("  KIND_WORK = 2;\n", '  reserved 2;\n  reserved "KIND_WORK";\n  KIND_VOID = 3;\n')
    new = new.replace("  rpc Get(", "  rpc Find(FindRequest) returns (Other);\n  rpc Get(") + "message FindRequest {}\n"
    assert breaks(tmp_path, new) == {}


def test_the_release_is_without_comments_and_is_whole() -> None:
    released = proto_breaking.released()
    assert all(not file.HasField("source_code_info") for file in released.file)
    assert {file.package for file in released.file} <= {file.package for file in compiled(PROTO).file}
    rpcs = sum(len(re.findall(r"^\s*rpc ", path.read_text(), re.MULTILINE)) for path in PROTO.rglob("*.proto"))
    assert 50 < sum(len(service.method) for file in released.file for service in file.service) <= rpcs

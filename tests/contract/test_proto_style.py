"""The contracts keep the rules of tools/proto_lint.py, and each rule finds what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import proto_lint
from tools.proto_set import PROTO, ContractError, compiled, without

GOOD = """syntax = "proto3";
package pofl.example.v1;
service ExampleService {
  // Anyone: what is here for the test to change. Changes nothing.
  rpc Get(GetRequest) returns (GetResponse);
}
message GetRequest {
  uint64 first_height = 1;
  oneof some_key { uint32 number = 2; bytes digest = 3; }
}
message GetResponse {
  reserved 7;
  Kind kind = 1;
  map<string, uint32> counts = 2;
  optional uint32 rows = 3;
}
enum Kind {
  KIND_UNSPECIFIED = 0;
  KIND_TASK = 1;
}
"""


def rules(folder: Path, text: str, path: str = "pofl/example/v1/example.proto", **others: str) -> list[str]:
    """The rules that a contract breaks."""
    for name, content in {path: text, **{f"pofl/{key}/v1/{key}.proto": value for key, value in others.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return [each.rule for each in proto_lint.findings(compiled(folder))]


def test_the_contracts_keep_every_rule() -> None:
    assert [str(each) for each in without(proto_lint.findings(compiled(PROTO)), proto_lint.EXCEPTIONS)] == []
    assert {path.parts[-3] for path in PROTO.rglob("*.proto")} == {
        "admin", "blob", "chain", "market", "mining", "peer", "task", "verify",
    }  # fmt: skip


def test_the_example_keeps_them_too(tmp_path: Path) -> None:
    assert rules(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("PACKAGE_LOWER_SNAKE_CASE", "package pofl.example.v1", "package pofl.Example.v1"),
        ("PACKAGE_DIRECTORY_MATCH", "package pofl.example.v1", "package pofl.other.v1"),
        ("PACKAGE_VERSION_SUFFIX", "package pofl.example.v1", "package pofl.example"),
        ("SYNTAX_SPECIFIED", 'syntax = "proto3"', 'syntax = "proto2"'),
        ("MESSAGE_PASCAL_CASE", "GetRequest", "get_request"),
        ("FIELD_LOWER_SNAKE_CASE", "first_height", "firstHeight"),
        ("ONEOF_LOWER_SNAKE_CASE", "some_key", "SomeKey"),
        ("ENUM_PASCAL_CASE", "Kind", "kind_of"),
        ("ENUM_FIRST_VALUE_ZERO", "KIND_UNSPECIFIED = 0;", ""),
        ("ENUM_NO_ALLOW_ALIAS", "KIND_TASK = 1;", "KIND_TASK = 1; KIND_WORK = 1; option allow_alias = true;"),
        ("ENUM_VALUE_PREFIX", "KIND_TASK", "TASK"),
        ("ENUM_VALUE_UPPER_SNAKE_CASE", "KIND_TASK", "KIND_task"),
        ("ENUM_ZERO_VALUE_SUFFIX", "KIND_UNSPECIFIED", "KIND_NONE"),
        ("SERVICE_PASCAL_CASE", "ExampleService", "exampleService"),
        ("SERVICE_SUFFIX", "ExampleService", "ExampleApi"),
        ("RPC_PASCAL_CASE", "rpc Get(", "rpc get("),
        ("RPC_REQUEST_STANDARD_NAME", "GetRequest", "Query"),
        ("RPC_RESPONSE_STANDARD_NAME", "GetResponse", "Answer"),
        ("RPC_REQUEST_RESPONSE_UNIQUE", "(GetResponse);", "(GetResponse);\n rpc Find(GetRequest) returns (FindResponse);"),
        ("RPC_CALLER", "Anyone: what", "This is what"),
        ("RPC_CALLER", "// Anyone: what is here for the test to change. Changes nothing.", "// Anyone."),
        ("RPC_CALLER", "// Anyone: what is here for the test to change. Changes nothing.", ""),
        ("RESERVED_RANGE", "reserved 7;", "reserved 7 to max;"),
        ("IMPORT_NO_PUBLIC", "package pofl.example.v1;", 'package pofl.example.v1; import public "pofl/far/v1/far.proto";'),
        ("IMPORT_USED", "package pofl.example.v1;", 'package pofl.example.v1; import "pofl/far/v1/far.proto";'),
    ],
)  # fmt: skip
def test_each_rule_finds_what_it_is_for(tmp_path: Path, rule: str, before: str, after: str) -> None:
    assert before in GOOD
    bad = GOOD.replace(before, after)
    if "FindResponse" in bad:
        bad += "message FindResponse {}\n"
    if rule in ("SYNTAX_SPECIFIED", "ENUM_FIRST_VALUE_ZERO"):
        # proto3 itself refuses an enum that begins with another number.
        bad = (
            bad.replace("proto3", "proto2")
            .replace("uint64 first", "optional uint64 first")
            .replace("  Kind", "  optional Kind")
        )
    assert rule in rules(tmp_path, bad, far='syntax = "proto3";\npackage pofl.far.v1;\nmessage Far {}\n')


def test_files_and_packages(tmp_path: Path) -> None:
    assert "FILE_LOWER_SNAKE_CASE" in rules(tmp_path / "a", GOOD, "pofl/example/v1/Example.proto")
    assert "PACKAGE_DEFINED" in rules(tmp_path / "b", GOOD.replace("package pofl.example.v1;", ""))
    with pytest.raises(ContractError, match="no contract"):
        compiled(tmp_path / "nothing")


def test_a_finding_says_where() -> None:
    broken = compiled(PROTO)
    file = next(each for each in broken.file if each.package == "pofl.chain.v1")
    file.service[0].method[1].name = "tip"
    found = [str(each) for each in proto_lint.findings(broken) if each.rule == "RPC_PASCAL_CASE"]
    assert found == [f"{file.name}:13: pofl.chain.v1.ChainService.tip: is not PascalCase [RPC_PASCAL_CASE]"]


def test_an_exception_that_excuses_nothing_is_found() -> None:
    stale = without([], {("RPC_CALLER", "pofl.x.v1.Y.Z"): "once it did"})
    assert [each.rule for each in stale] == ["STALE_EXCEPTION"]

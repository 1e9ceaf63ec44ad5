"""Compiles the contracts in proto/ into the wheel, so that its stubs are those of the contracts it was built from.

The same compilers make the stubs beside the contracts (tools/generate_stubs.py). Here services are typed for both kinds of
channel: a script may block, a role of the network may not.
"""

from __future__ import annotations

import importlib.resources
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Stubs(BuildHookInterface[Any]):
    """Puts ``pofl/**/*_pb2*.py(i)`` into a wheel, and the contracts into an archive of the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        # In a checkout the contracts are two folders up; an archive of the sources has them beside this file.
        proto = next((path for path in (root / "proto", root.parent.parent / "proto") if (path / "pofl").is_dir()), None)
        if proto is None:
            raise FileNotFoundError(f"no contracts beside or above {root}: build the client in a whole checkout")
        contracts = sorted(path.relative_to(proto).as_posix() for path in proto.glob("pofl/**/*.proto"))
        included: dict[str, str] = build_data["force_include"]
        if self.target_name == "sdist":
            included.update({str(proto / name): f"proto/{name}" for name in contracts})
            return
        if version == "editable":
            raise NotImplementedError("the client cannot be installed in place: leave out -e")
        self._folder = tempfile.TemporaryDirectory()
        made = Path(self._folder.name)
        _compile(proto, contracts, made)
        for path in sorted(made.rglob("*_pb2*.py*")):
            name = path.relative_to(made).as_posix()
            included[str(path)] = name
        for area in sorted({Path(name).parent for name in contracts}):
            (made / area / "py.typed").touch()
            included[str(made / area / "py.typed")] = (area / "py.typed").as_posix()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            self._folder.cleanup()


def _compile(proto: Path, contracts: list[str], target: Path) -> None:
    from grpc_tools import protoc

    # The plugins are console scripts beside the packages, wherever the build environment has those.
    homes = [
        Path(sys.executable).parent,
        *(Path(entry).parents[2] / "bin" for entry in sys.path if entry.endswith("-packages")),
    ]
    os.environ["PATH"] = os.pathsep.join([*map(str, homes), os.environ.get("PATH", os.defpath)])
    status = protoc.main(
        [
            "protoc", f"-I{proto}", f"-I{importlib.resources.files('grpc_tools') / '_proto'}", f"--python_out={target}",
            f"--mypy_out=quiet:{target}", f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *contracts,
        ]
    )  # fmt: skip
    if status != 0:
        raise RuntimeError(f"protoc refused the contracts (status {status}); its message is above")

"""Generate the Python stubs beside every contract in ``proto/``.

::

    python tools/generate_stubs.py           write the stubs, remove those whose contract is gone
    python tools/generate_stubs.py --check   write nothing; exit 1 and name the files that differ

For ``x.proto`` the files are ``x_pb2.py`` and ``x_pb2.pyi`` (messages), ``x_pb2_grpc.py`` and ``x_pb2_grpc.pyi``
(services, typed for grpc.aio). Contracts without a service still get the last two: one rule for every contract.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "proto"
STUB_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(source: Path, target: Path) -> None:
    """Compile every ``source/pofl/**/*.proto`` into ``target``. Exits with protoc's message if a contract is wrong."""
    from grpc_tools import protoc

    contracts = sorted(path.relative_to(source).as_posix() for path in source.glob("pofl/**/*.proto"))
    if not contracts:
        sys.exit(f"no contract below {source}/pofl: nothing to generate")
    # The mypy plugins are console scripts beside the interpreter; a shell may not have that folder on its path.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"-I{source}",
            f"-I{well_known}",
            f"--python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--grpc_python_out={target}",
            f"--mypy_grpc_out=quiet,only_async:{target}",
            *contracts,
        ]
    )
    if status != 0:
        sys.exit(f"protoc refused the contracts (status {status}); its message is above")


def stubs(root: Path) -> dict[str, bytes]:
    """Every stub below ``root``, by path relative to it."""
    paths = (path for pattern in STUB_PATTERNS for path in root.glob(f"pofl/**/{pattern}"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate the Python stubs beside every contract in proto/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a stub is not up to date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(ROOT, Path(folder))
        wanted = stubs(Path(folder))
    present = stubs(ROOT)
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if check:
        if stale:
            sys.exit("stubs are not up to date, run `make proto`:\n  " + "\n  ".join(stale))
        return
    for name in stale:
        if name in wanted:
            (ROOT / name).write_bytes(wanted[name])
        else:
            (ROOT / name).unlink()
    sys.stdout.write(f"{len(wanted)} stubs, {len(stale)} changed\n")


if __name__ == "__main__":
    main()

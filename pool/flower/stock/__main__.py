"""``python -m pool.flower.stock DIR``: write the folder for ``flwr run``."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

from core.errors import ConfigError, PoflError
from services.runtime.lifecycle import exit_code
from services.runtime.logging import shown

__all__ = ["main", "write_app"]

TEMPLATE = Path(__file__).resolve().parent / "template"
NO_VERSION = "0.0.0"


def write_app(folder: Path) -> list[Path]:
    """Write the app into ``folder``, which must be new or empty. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: choose another folder")
        return [_copy(source, folder) for source in sorted(TEMPLATE.rglob("*")) if _is_part(source)]
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from None


def _is_part(source: Path) -> bool:
    return source.is_file() and source.suffix in (".toml", ".md", ".py")


def _copy(source: Path, folder: Path) -> Path:
    path = folder / source.relative_to(TEMPLATE)
    path.parent.mkdir(exist_ok=True)
    text = source.read_text(encoding="utf-8")
    path.write_text(text.replace(NO_VERSION, version("pofl")) if source.suffix == ".toml" else text, encoding="utf-8")
    return path


def main() -> None:
    """Entry point of ``python -m pool.flower.stock``."""
    parser = argparse.ArgumentParser(prog="pofl pool flower-app", description="Write the Flower app that mines.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        written = write_app(arguments.folder)
    except PoflError as error:
        sys.stderr.write(f"error: {shown(error)}\n")
        sys.exit(exit_code(error))
    if arguments.json:
        sys.stdout.write(json.dumps({"folder": str(arguments.folder), "files": [str(path) for path in written]}) + "\n")
    else:
        sys.stdout.write(f"{arguments.folder}: {len(written)} files; next: flwr run {arguments.folder}\n")


if __name__ == "__main__":
    main()

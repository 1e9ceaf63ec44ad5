"""The packages that pyproject.toml asks for, one on a line: ``requirements.py pyproject.toml [extra ...]``.

pip has no way to install a project's dependencies without the project. An image wants them in a layer of their own.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

__all__ = ["main", "requirements"]


def requirements(project: Path, extras: list[str]) -> list[str]:
    """Those of the project, then those of each extra. Raises KeyError for an extra that there is not."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    return [*table["dependencies"], *(line for extra in extras for line in table["optional-dependencies"][extra])]


def main(arguments: list[str]) -> int:
    sys.stdout.write("\n".join(requirements(Path(arguments[0]), arguments[1:])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

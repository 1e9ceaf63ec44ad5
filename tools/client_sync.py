"""Make the blocking client of clients/python from the one over asyncio, so that there is one text to read and to mend.

::

    python tools/client_sync.py           write clients/python/src/pofl_client/_sync.py
    python tools/client_sync.py --check   write nothing; exit 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "clients" / "python" / "src" / "pofl_client"
SOURCE, TARGET = FOLDER / "_async.py", FOLDER / "_sync.py"
HEAD = '''"""Blocking clients of a node, a platform, a requester and a provider. Answers are the generated messages.

Made from ``_async`` by tools/client_sync.py; change that one.
"""
'''
RULES = (
    (r"AsyncGenerator\[(.+), None\]", r"Generator[\1, None, None]"),
    (r"AsyncGenerator, Callable, ", "Callable, Generator, "),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\baclosing\b", "closing"),
    (r"\b_runtime_async\b", "_runtime_sync"),
    (r"\bAsync(Node|Platform|Requester|Provider)\b", r"\1"),
)


def made(source: str) -> str:
    """The blocking twin of ``source``."""
    text = HEAD + source[source.index('"""\n\nfrom') + 4 :]
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the blocking client from the one over asyncio.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is not up to date")
    check = parser.parse_args().check
    wanted = made(SOURCE.read_text(encoding="utf-8"))
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == wanted:
        return
    if check:
        sys.exit(f"{TARGET.name} is not what {SOURCE.name} gives: run `make client`")
    TARGET.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()

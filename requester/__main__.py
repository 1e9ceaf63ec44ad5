"""``python -m requester --config FILE``."""

from __future__ import annotations

import sys

from services.runtime.startup import loading

with loading():
    from requester.app import main as serve
    from requester.config import RequesterConfig
    from services.rpc.role import role_main


def main() -> int:
    return role_main(RequesterConfig, serve)


if __name__ == "__main__":
    sys.exit(main())

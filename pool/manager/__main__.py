"""``python -m pool.manager --config FILE``."""

from __future__ import annotations

import sys

from services.runtime.startup import loading

with loading():
    from pool.manager.app import main as serve
    from pool.manager.config import PoolConfig
    from services.rpc.role import role_main


def main() -> int:
    return role_main(PoolConfig, serve)


if __name__ == "__main__":
    sys.exit(main())

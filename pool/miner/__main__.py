"""``python -m pool.miner --config FILE``."""

from __future__ import annotations

import sys

from services.runtime.startup import loading

with loading():
    from pool.miner.app import main as serve
    from pool.miner.config import MinerConfig
    from services.rpc.role import role_main


def main() -> int:
    return role_main(MinerConfig, serve)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m node --config FILE``."""

from __future__ import annotations

import sys

from services.runtime.startup import loading

with loading():
    from node.app import main as run_node
    from node.config import NodeConfig
    from services.rpc.role import role_main


def main() -> int:
    return role_main(NodeConfig, run_node)


if __name__ == "__main__":
    sys.exit(main())

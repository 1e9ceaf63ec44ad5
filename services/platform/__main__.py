"""``python -m services.platform --config FILE``."""

from __future__ import annotations

import sys

from services.runtime.startup import loading

with loading():
    from services.platform.app import main as serve
    from services.platform.config import PlatformConfig
    from services.rpc.role import role_main


def main() -> int:
    return role_main(PlatformConfig, serve)


if __name__ == "__main__":
    sys.exit(main())

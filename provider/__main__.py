"""``python -m provider --config FILE``."""

from __future__ import annotations

import sys

from services.runtime.startup import loading

with loading():
    from provider.app import main as serve
    from provider.config import ProviderConfig
    from services.rpc.role import role_main


def main() -> int:
    return role_main(ProviderConfig, serve)


if __name__ == "__main__":
    sys.exit(main())

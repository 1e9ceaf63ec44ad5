"""What every role shares, and the roles without a folder of their own.

gRPC reads its environment once, when it is first imported, so this package sets it; every role's package imports this
one before anything else.
"""

from __future__ import annotations

import os
import sys

# gRPC for Python has no setting for the lowest TLS version, and its default still takes 1.2. Version 1.2 can only use
# the suites of this list, all of them for RSA certificates, and ours are ECDSA: so nothing but 1.3 can be agreed on.
_SUITES = "ECDHE-RSA-AES256-GCM-SHA384"

TLS_1_3_ONLY = os.environ.get("GRPC_SSL_CIPHER_SUITES") == _SUITES or "grpc" not in sys.modules
"""False if gRPC was imported before this package; services.rpc.tls then refuses to make credentials."""

os.environ["GRPC_SSL_CIPHER_SUITES"] = _SUITES
# Its C++ log goes to stderr past our logging; what it says also reaches us as errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

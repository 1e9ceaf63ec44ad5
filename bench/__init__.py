"""Measurements. Nothing of the product imports this package, except ``pofl bench`` when it is called."""

import services  # noqa: F401  before gRPC is imported: it sets TLS 1.3

"""Flower embedded: guard, manager and miner (design: docs/adr/0020, 0021)."""

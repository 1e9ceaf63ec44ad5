"""Ordered key-value stores with atomic batches: on disk, in memory, and one that fails on purpose."""

from __future__ import annotations

from services.storage.interface import KeyValueStore, StoreMeta
from services.storage.leveldb import LevelDb
from services.storage.memory import Memory

__all__ = ["KeyValueStore", "LevelDb", "Memory", "StoreMeta"]

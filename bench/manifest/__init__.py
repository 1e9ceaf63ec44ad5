"""Whole networks from manifests: what runs, what is done to it, and what must hold afterwards (docs/testing.md).

`bench.manifest.reader` reads them, `bench.manifest.generate` draws them, `bench.manifest.drive` runs them on a back end
(`bench.manifest.processes`, `bench.manifest.containers`), `bench.manifest.invariants` judges what the network then serves.
"""

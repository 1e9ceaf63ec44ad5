"""Real data: files of several kinds, read with bounds, and turned into features by fixed public rules.

A *descriptor* (TOML) says where rows lie and carries the *recipe*: how a raw row becomes features, the same on every
machine, to the last bit (docs/mining.md, "Data").
"""

"""The same mining on a stock Flower deployment, through Flower's public API only (docs/adr/0101).

For users who already run a SuperLink and SuperNodes. ``python -m pool.flower.stock DIR`` writes the folder for ``flwr
run``; what it names, server_app and client_app, is here, so pofl must be installed where Flower starts its processes.
"""

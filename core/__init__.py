"""The pure library of PoFL: what the roles know, readable next to the paper. No I/O, no clocks, no threads."""

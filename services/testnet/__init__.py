"""A whole network on one machine: its files, its processes, what they did."""

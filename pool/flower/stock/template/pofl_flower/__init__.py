"""The app that `flwr run` sends out. It names what an installed pofl has and brings no code of its own."""

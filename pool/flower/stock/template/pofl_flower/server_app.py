"""Where Flower finds the ServerApp."""

from pool.flower.stock.server_app import app

__all__ = ["app"]

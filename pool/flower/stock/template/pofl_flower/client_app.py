"""Where Flower finds the ClientApp."""

from pool.flower.stock.client_app import app

__all__ = ["app"]

"""How a won reward is shared: the rule is core.market.contributions.share_out, so that everybody can check it."""

from __future__ import annotations

from core.market.contributions import MAX_PAID, share_out

__all__ = ["MAX_PAID", "share_out"]

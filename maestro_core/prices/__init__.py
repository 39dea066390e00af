"""What a model call costs: its price after the call, its bound before. Exact, and nothing unknown is free.

The prices are those of the installed `genai-prices`, which is read when the first price is asked for.
"""

from __future__ import annotations

from functools import lru_cache

from .bound import CacheWrites, Modality, worst_case
from .description import RateRow, describe, newest_price
from .names import closest
from .pricing import price

__all__ = [
    "CacheWrites",
    "Modality",
    "RateRow",
    "closest",
    "describe",
    "newest_price",
    "price",
    "price_book",
    "worst_case",
]


@lru_cache(maxsize=1)
def price_book() -> str:
    """Return which price book is installed, e.g. `"genai-prices 0.2.3"`."""
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"

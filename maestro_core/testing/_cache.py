"""Anthropic's prompt cache: prefixes that end at a `cache_control` mark are written once and read afterwards.

https://platform.claude.com/docs/en/build-with-claude/prompt-caching. Kept simple: entries never expire before
`reset()`, and there is no minimum length.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from ._bill import Counts

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PromptCache"]


class PromptCache:
    """Which prefixes were written, for each model; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: set[tuple[str, bytes]] = set()

    def count(self, model: str, blocks: Sequence[tuple[str, str | None]]) -> Counts:
        """Return the input tokens of a prompt by how the cache treats them, and write what is marked.

        Args:
            model: The model that serves.
            blocks: The prompt's parts in order, each with the cache time it is marked with, or None.
        """
        digest = hashlib.sha256(model.encode())
        read = total = length = 0
        writes: list[tuple[int, str, tuple[str, bytes]]] = []
        with self._lock:
            for text, ttl in blocks:
                raw = text.encode("utf-8", "surrogatepass")
                length += len(raw)
                total = -(-length // 4)
                # The length keeps ("ab", "c") and ("a", "bc") apart.
                digest.update(len(raw).to_bytes(8, "big") + raw)
                key = (model, digest.digest())
                if key in self._known:
                    read, writes = total, []
                elif ttl:
                    writes.append((total, ttl, key))
            self._known.update(key for _, _, key in writes)
        written = {"5m": 0, "1h": 0}
        start = read
        for end, ttl, _ in writes:
            written[ttl] += end - start
            start = end
        return Counts(
            input=total, cache_read=read, cache_write_5m=written["5m"], cache_write_1h=written["1h"]
        )

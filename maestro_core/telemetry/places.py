"""Where a model's requests go, as attributes of its span."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from . import names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.util.types import AttributeValue

__all__ = ["server"]

_USUAL_PORTS = {"http": 80, "https": 443}


@lru_cache(maxsize=1024)
def server(url: str) -> Mapping[str, AttributeValue]:
    """Return the host and the port of a URL as the conventions name them; nothing for text that has no host.

    They ask for the port wherever the address stands, so that the one which the scheme implies is told, too.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return {}
    if not host:
        return {}
    found: dict[str, AttributeValue] = {names.SERVER: host}
    port = port or _USUAL_PORTS.get(parts.scheme)
    if port:
        found[names.SERVER_PORT] = port
    return found

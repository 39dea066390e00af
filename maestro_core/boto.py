"""AWS's client without the retries that it makes by itself; the names are botocore's private ones."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["silent_boto"]


def silent_boto(client: Any) -> Any:
    """Return a copy of a boto client, with its credentials and connections, that hears no call to retry.

    Raises:
        AttributeError: If it is no client of botocore's making.
    """
    silent, endpoint = _shallow(client), _shallow(client._endpoint)  # noqa: SLF001 - there is no public way
    emitter = copy.copy(endpoint._event_emitter)  # noqa: SLF001
    service = client.meta.service_model.service_id.hyphenize()
    emitter.unregister(f"needs-retry.{service}", unique_id=f"retry-config-{service}")
    endpoint._event_emitter = emitter  # noqa: SLF001
    silent._endpoint = endpoint  # noqa: SLF001
    return silent


def _shallow(thing: Any) -> Any:
    # `copy.copy` asks a boto client for attributes before it has any, which never ends.
    twin = object.__new__(type(thing))
    twin.__dict__.update(thing.__dict__)
    return twin

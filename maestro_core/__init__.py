"""Maestro: a price, an owner and a ceiling on every model call of an agent.

Names load on first use, so that `import maestro_core` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .attribution import attribution
from .errors import CapExceeded, MaestroError, NoEndpoint, PriceNotFound
from .types import SLA, Budget, Cap

if TYPE_CHECKING:
    from .endpoints import Endpoint, sla
    from .hookspecs import hookimpl
    from .maestro import Maestro
    from .prices import price
    from .usage import Usage

__all__ = [
    "SLA",
    "Budget",
    "Cap",
    "CapExceeded",
    "Endpoint",
    "Maestro",
    "MaestroError",
    "NoEndpoint",
    "PriceNotFound",
    "Usage",
    "__version__",
    "attribution",
    "hookimpl",
    "price",
    "sla",
]

_LAZY = {
    "Endpoint": ".endpoints",
    "Maestro": ".maestro",
    "Usage": ".usage",
    "hookimpl": ".hookspecs",
    "price": ".prices",
    "sla": ".endpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

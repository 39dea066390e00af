"""What may serve a call: the user's models, what is known of each, and what is asked of them for some calls."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .blocks import Block
from .types import SLA

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from decimal import Decimal

__all__ = ["Endpoint", "Facts", "asked", "named", "sla"]

_asked: ContextVar[SLA | None] = ContextVar("maestro_sla", default=None)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model at a provider at a price.

    Args:
        model: The framework's own model object, as it would be used without Maestro.
        name: How decisions and reports call it; the model's name if None, numbered where several share it.
        quality: From 0 to 1, by whatever measure suits the task; only compared with `SLA(quality_min=...)`.
        latency_ms_p95: What is expected of its latency until enough calls were seen.
        price: US dollars per million tokens, `{"input": "0.15", "output": "0.60"}`, where the price book's are not
            what is paid.

    Raises:
        ValueError: For a number out of its range.
    """

    model: Any
    name: str | None = None
    quality: float | None = None
    latency_ms_p95: float | None = None
    price: Mapping[str, str | int | Decimal] | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and not 0 <= self.quality <= 1:
            raise ValueError(f"Endpoint(quality={self.quality!r}): write a number from 0 to 1")
        if self.latency_ms_p95 is not None and not self.latency_ms_p95 > 0:
            raise ValueError(
                f"Endpoint(latency_ms_p95={self.latency_ms_p95!r}): write milliseconds, more than 0"
            )
        if self.name == "":
            raise ValueError('Endpoint(name=""): give it a name, or leave it out')


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an adapter finds out about an endpoint before it is asked anything.

    Args:
        endpoint: As the user declared it.
        name: Unique among those of one router.
        provider: Provider id.
        model: The model, as the provider names it.
        label: How messages call it, e.g. `"ChatOpenAI gpt-5"`.
        identity: What makes it the same endpoint as that of another router (address, credentials), so that both
            learn from each other.
        base_url: Where its requests go, if not to the provider's own address.
        max_output_tokens: The output limit that the model itself sets.
        least_output_tokens: As in `Call`.
        n: How many completions one call asks for.
        attempts: How often its client may send one request, with retries of its own that could not be switched off.
        tier: The service tier that it asks for.
        fits: Whether its output limit can be set for a call.
        retries: How often its client would have sent a failed request again.
        context_tokens: Its context window; None if it is not known.
        lacks: What it is known not to be able to do: `"tools"`, `"images"`, `"structured_output"`.
        carried: What its constructor adds to each request. Only measured.
    """

    endpoint: Endpoint
    name: str
    provider: str
    model: str
    label: str = ""
    identity: Hashable = ()
    base_url: str = ""
    max_output_tokens: int | None = None
    least_output_tokens: int = 1
    n: int = 1
    attempts: int = 1
    tier: str | None = None
    fits: bool = False
    retries: int = 0
    context_tokens: int | None = None
    lacks: frozenset[str] = frozenset()
    carried: tuple[object, ...] = ()

    @property
    def key(self) -> Hashable:
        """What is learned about an endpoint is learned under this key."""
        return self.provider, self.model, self.base_url, self.identity


def named(endpoints: Sequence[Endpoint], models: Sequence[str]) -> list[str]:
    """Return a unique name for each endpoint: its own, else its model's, numbered where several share it.

    Raises:
        ValueError: If two endpoints were given the same name.
    """
    own = [each.name for each in endpoints if each.name]
    for name in own:
        if own.count(name) > 1:
            raise ValueError(f"two endpoints are named {name!r}: give each a name of its own")
    taken = set(own)
    names = []
    for endpoint, model in zip(endpoints, models, strict=True):
        name, number = endpoint.name or model, 1
        while endpoint.name is None and name in taken:
            number += 1
            name = f"{model}#{number}"
        taken.add(name)
        names.append(name)
    return names


class sla(Block[SLA | None]):  # noqa: N801 - read as a verb: `with sla(quality_min=0.9):`
    """Ask more, or other, of the endpoints for the routed calls made inside the `with` block.

    Blocks nest and merge, the inner one wins; what a block leaves out stays as the router has it. The context follows
    asyncio tasks and the frameworks' tool threads, as that of `attribution` does.

    Args:
        latency_ms_p95: As in `SLA`, and so the others.
        ttft_ms_p95: Likewise.
        quality_min: Likewise.
        error_rate_max: Likewise.

    Raises:
        ValueError: For a number out of its range.
    """

    __slots__ = ("_asked",)

    def __init__(
        self,
        *,
        latency_ms_p95: float | None = None,
        ttft_ms_p95: float | None = None,
        quality_min: float | None = None,
        error_rate_max: float | None = None,
    ) -> None:
        super().__init__(_asked)
        self._asked = SLA(
            latency_ms_p95=latency_ms_p95,
            ttft_ms_p95=ttft_ms_p95,
            quality_min=quality_min,
            error_rate_max=error_rate_max,
        )

    def _inside(self, around: SLA | None) -> SLA | None:
        return self._asked.over(around) if around else self._asked


def asked(own: SLA, call: SLA | None = None) -> SLA:
    """Return what holds for a call: what was bound to it, else what the surrounding block asks, else the router's own."""
    around = _asked.get()
    found = around.over(own) if around else own
    return call.over(found) if call else found

"""Service tiers and regions: providers' spellings, and what the price book calls them."""

from __future__ import annotations

from maestro_core.errors import PriceNotFound

__all__ = ["CONTEXTS", "TIERS", "check_region", "parse_tier"]

TIERS = ("standard", "batch", "flex", "priority", "fast")

# What the price book's variants are selected by. OpenAI's `default` variants repeat the standard price.
CONTEXTS: dict[str, tuple[dict[str, str], ...]] = {
    "batch": ({"processing": "batch"},),
    "flex": ({"service_tier": "flex"},),
    "priority": ({"service_tier": "priority"},),
    "fast": ({"service_tier": "fast"}, {"speed": "fast"}),
}

_SPELLINGS = {
    # OpenAI, Azure, Bedrock: default. Groq, Vertex: on_demand. Anthropic: standard, standard_only.
    "standard": "standard",
    "default": "standard",
    "on_demand": "standard",
    "standard_only": "standard",
    "traffic_type_unspecified": "standard",
    # As a *served* tier, "auto" says that nothing special was asked for or given. A bound treats it as the dearest.
    "auto": "standard",
    "batch": "batch",
    "flex": "flex",
    "on_demand_flex": "flex",
    "priority": "priority",
    "on_demand_priority": "priority",
    "fast": "fast",
}
# Capacity bought in advance (OpenAI scale, Bedrock reserved, Vertex provisioned) has no price per token.
_PREPAID = frozenset({"scale", "reserved", "provisioned_throughput"})

# Anthropic says "not_available" for models that it does not place; "global" is its and Bedrock's normal price.
_HOME_REGIONS = frozenset({"", "global", "not_available", "default"})


def parse_tier(name: str | None) -> str:
    """Return one of `TIERS` for a tier as any provider spells it; None is `"standard"`.

    Raises:
        PriceNotFound: For a tier that nobody is known to have, or that is not billed per token.
    """
    if name is None:
        return "standard"
    spelling = name.strip().lower().replace("-", "_").replace(" ", "_")
    tier = _SPELLINGS.get(spelling)
    if tier is None:
        why = "is capacity bought in advance, not billed per token" if spelling in _PREPAID else "is unknown"
        raise PriceNotFound(f"no price: service tier {name!r} {why}; tiers are {', '.join(TIERS)}", TIERS)
    return tier


def check_region(name: str | None) -> None:
    """Accept the regions at which the sheet price holds.

    Raises:
        PriceNotFound: For any other region: providers charge more there, and the price book does not say how much.
    """
    if name is not None and name.strip().lower() not in _HOME_REGIONS:
        raise PriceNotFound(
            f"no price: the price book has no rates for region {name!r}; "
            f'set a [[prices]] entry with region = "{name}" and its multiplier',
            ("global",),
        )

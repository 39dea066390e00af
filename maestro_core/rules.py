"""Which endpoints may serve whom: the `rules` setting."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .types import check_dimension

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .types import Attribution

__all__ = ["Rule", "broken"]


def _where(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        check_dimension(name)
    return value


class Rule(BaseModel):
    """Allows or denies endpoints to some calls; an endpoint has to keep every rule that a call comes under.

    Attributes:
        where: The calls it is for, by dimension and value, all of which must match; all calls if empty.
        allow: The endpoints that may serve them: names, or patterns as `"azure-*"` and `"anthropic:*"`
            (`provider:model`). One name pins them to one endpoint.
        deny: Those that may not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: Annotated[dict[str, str], AfterValidator(_where)] = Field(default_factory=dict)
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if not self.allow and not self.deny:
            raise ValueError('a rule allows or denies endpoints: {"allow": ["azure-*"]}')
        return self

    def breaks(self, name: str, model: str) -> str:
        """Return what the rule has against an endpoint, by its name and its `provider:model`; empty if nothing."""
        if self.allow and not _any(self.allow, name, model):
            return f"allow {','.join(self.allow)}"
        return f"deny {','.join(self.deny)}" if _any(self.deny, name, model) else ""


def broken(rules: Sequence[Rule], who: Attribution, name: str, model: str) -> str:
    """Return what the rules have against an endpoint serving a call; empty if nothing.

    Args:
        rules: The setting.
        who: Whom the call is for.
        name: The endpoint's name.
        model: Its `provider:model`.
    """
    for rule in rules:
        if all(value in who.values(dimension) for dimension, value in rule.where.items()) and (
            said := rule.breaks(name, model)
        ):
            return said
    return ""


def _any(patterns: Sequence[str], *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)

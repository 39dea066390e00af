"""Settings: keyword arguments, then `MAESTRO_*`, then `maestro.toml`, then `[tool.maestro]` in pyproject.toml."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UndecodableError

from .errors import SettingsError
from .money import parse_usd
from .prices.entries import PriceEntry, explain
from .routes import AlertSettings
from .rules import Rule
from .types import Budget, Cap

__all__ = ["Settings"]

# Environment variables that start with MAESTRO_ and are no settings, or a part of one.
_NOT_SETTINGS = frozenset({"attribution", "auto", "on_ledger_error__allow_usd"})

_EXAMPLE = """, for example MAESTRO_CAPS='[{"limit": "20", "per": "customer", "every": "day"}]'"""

# Names, in the environment as JSON or parted by commas.
_Names = Annotated[tuple[str, ...], NoDecode]


def _declared(kind: type[Cap | Budget]) -> BeforeValidator:
    def convert(value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        unknown = set(value) - {"limit", "per", "where", "every", "alert_at"}
        if unknown or "limit" not in value:
            wrong = f"unknown key {min(unknown)!r}" if unknown else 'no "limit"'
            raise ValueError(f"{wrong}; a {kind.__name__} has limit, per, where, every, alert_at")
        limit, *rest = value["limit"], {k: v for k, v in value.items() if k != "limit"}
        try:
            return kind(limit, **rest[0])
        except TypeError as error:  # pydantic passes on only ValueErrors
            raise ValueError(str(error)) from None

    return BeforeValidator(convert)


def _price_entry(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    try:
        return PriceEntry.model_validate(dict(value))
    except ValidationError as error:
        raise ValueError(explain(error, value)) from None


class Settings(BaseSettings):
    """Every setting, validated; unknown keys are errors.

    Attributes:
        ledger: `memory:`, `sqlite:///file.db` (an absolute path has four slashes).
        caps: Ceilings that stop spend.
        budgets: Targets that are tracked and stop nothing.
        prices: What is paid where it is not the price book's price; see `maestro_core.prices.entries.PriceEntry`.
        rules: Which endpoints of routed models may serve which calls; see `maestro_core.rules.Rule`.
        time_zone: IANA zone of the calendar windows.
        on_unknown_price: `"warn"` counts the call as unpriced, `"refuse"` refuses it. Under a cap it is always refused.
        on_ledger_error: `"refuse"` (only calls that a cap applies to) or `{"allow_usd": "5"}` per process.
        wait_s: How long a door that can wait waits for held money.
        min_output_tokens: Never fit a call below this.
        hold_ttl_s: An open hold older than this is presumed spent.
        ledger_timeout_s: The longest a callback may block on a ledger across a network, which a plugin brings; the
            built-in ledgers do not read it.
        require: Dimensions that every call must have.
        require_mode: What happens to a call without them: `"refuse"` or `"warn"`.
        dimensions: Further LangChain metadata keys that are dimensions.
        alerts: Where alerts go, and how much money makes one; see `maestro_core.routes.AlertSettings`.
        on_loop: What happens to an agent that goes round in circles: `"alert"`, `"halt"` (its run is refused further
            calls until `resume`), or `"off"`.
        polling_tools: Tools that may be asked the same again and again, and are no loop.
        capture_content: Whether prompts and completions enter the spans of model calls that we draw; never anything else.
        spans: `"auto"` draws spans unless another instrumentation traces the framework, whose model spans it then
            annotates; `"own"` always draws, `"annotate"` never does, `"off"` does neither.
        cost_attributes: Further span attributes for a call's dollars, as other backends spell it: `"llm.cost.total"`,
            `"operation.cost"`, `"mlflow.llm.cost"`, `"langfuse.observation.cost_details"`, ...
    """

    model_config = SettingsConfigDict(
        env_prefix="MAESTRO_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        toml_file="maestro.toml",
        pyproject_toml_table_header=("tool", "maestro"),
    )

    ledger: str = "sqlite:///maestro.db"
    caps: tuple[Annotated[Cap, _declared(Cap)], ...] = ()
    budgets: tuple[Annotated[Budget, _declared(Budget)], ...] = ()
    prices: tuple[Annotated[PriceEntry, BeforeValidator(_price_entry)], ...] = ()
    rules: tuple[Rule, ...] = ()
    time_zone: str = "UTC"
    on_unknown_price: Literal["warn", "refuse"] = "warn"
    on_ledger_error: Literal["refuse"] | Annotated[dict[Literal["allow_usd"], str], Field(min_length=1)] = (
        "refuse"
    )
    wait_s: float = Field(120, ge=0)
    min_output_tokens: int = Field(256, ge=1)
    hold_ttl_s: float = Field(3600, gt=0)
    ledger_timeout_s: float = Field(0.25, gt=0)
    require: _Names = ()
    require_mode: Literal["refuse", "warn"] = "refuse"
    dimensions: _Names = ()
    alerts: AlertSettings = AlertSettings()
    on_loop: Literal["alert", "halt", "off"] = "alert"
    polling_tools: _Names = ()
    capture_content: bool = False
    spans: Literal["auto", "own", "annotate", "off"] = "auto"
    cost_attributes: _Names = ()

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
            self._origins = _origins(type(self), values)
            _refuse_unknown_environment(type(self))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"maestro.toml or pyproject.toml is not valid TOML: {error}") from None
        except UndecodableError as error:
            raise SettingsError(f"{error}; it has to be JSON{_EXAMPLE}") from None
        except ValidationError as error:
            raise SettingsError(_explain(error, type(self))) from None

    @property
    def origins(self) -> Mapping[str, str]:
        """Where each value came from: `argument`, `MAESTRO_...`, `maestro.toml`, `pyproject.toml` or `default`."""
        return self._origins

    @property
    def allow_nanos(self) -> int:
        """What each process may spend while the ledger cannot be reached, in nano-dollars."""
        return (
            0
            if self.on_ledger_error == "refuse"
            else parse_usd(self.on_ledger_error["allow_usd"], name="allow_usd")
        )

    @field_validator("require", "dimensions", "polling_tools", "cost_attributes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("cost_attributes")
    @classmethod
    def _no_other_usage(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name.startswith("gen_ai.usage."):
                raise ValueError(
                    f"{name!r}: backends read what is below gen_ai.usage. as whole numbers of tokens and drop the usage"
                    " of a span where one is not; gen_ai.usage.cost is written anyway"
                )
        return value

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f'{value!r} is no time zone; use an IANA name such as "Europe/Berlin" or "UTC"'
            ) from None
        return value

    @model_validator(mode="after")
    def _no_duplicates(self) -> Settings:
        _ = self.allow_nanos
        for kind in ("caps", "budgets"):
            seen: dict[str, Cap | Budget] = {}
            for declared in getattr(self, kind):
                meter = declared.meter(self.time_zone).id
                if meter in seen:
                    raise ValueError(
                        f"{kind}: {declared} and {seen[meter]} are about the same calls; keep one"
                    )
                seen[meter] = declared
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources; pydantic-settings calls this."""
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls),
            PyprojectTomlConfigSettingsSource(settings_cls),
        )


def _origins(cls: type[Settings], arguments: Mapping[str, Any]) -> dict[str, str]:
    files = {
        "maestro.toml": TomlConfigSettingsSource(cls)(),
        "pyproject.toml": PyprojectTomlConfigSettingsSource(cls)(),
    }
    found = {}
    for name in cls.model_fields:
        variable = f"MAESTRO_{name.upper()}"
        if name in arguments:
            found[name] = "argument"
        elif any(key.upper() == variable or key.upper().startswith(variable + "__") for key in os.environ):
            found[name] = variable
        else:
            found[name] = next((file for file, values in files.items() if name in values), "default")
    return found


def _refuse_unknown_environment(cls: type[Settings]) -> None:
    known = set(cls.model_fields) | _NOT_SETTINGS
    for variable in os.environ:
        name = variable.removeprefix("MAESTRO_").lower()
        if name.startswith("alerts__") and name.removeprefix("alerts__") in AlertSettings.model_fields:
            continue
        if variable.startswith("MAESTRO_") and name not in known:
            raise SettingsError(f"unknown setting {variable} in the environment{_closest(name, known)}")


def _explain(error: ValidationError, cls: type[Settings]) -> str:
    """Return the first thing that is wrong, a key that is unknown before others, in one line that names the key and the fix."""
    errors = error.errors()  # a misspelled key comes first: what is missing is often what was meant by it
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *tables, key = first["loc"]
        return f"unknown setting {place!r}{_closest(str(key), _keys(cls, tables))}"
    if place.startswith("on_ledger_error"):
        return f"""setting on_ledger_error: {first["input"]!r} is neither "refuse" nor {{"allow_usd": "5"}}"""
    if first["type"] == "tuple_type":
        return (
            f"setting {place}: {first['input']!s} is no list; put it in brackets, even if it is the only one"
        )
    reason = first["msg"].removeprefix("Value error, ")
    return f"setting {place}: {reason}" if place else reason


def _keys(model: type[BaseModel], tables: list[str | int]) -> Iterable[str]:
    """Return the keys of the table that is found in `model` by way of `tables`; numbers are places in a list."""
    for table in tables:
        if isinstance(table, str):
            kind = model.model_fields[table].annotation
            model = next(each for each in (*get_args(kind), kind) if hasattr(each, "model_fields"))
    return model.model_fields


def _closest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"

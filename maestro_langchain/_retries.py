"""Switching off the retries that provider clients make by themselves, below everything that LangChain can see.

The names are the integrations' private ones; tests/matrix/providers.py counts the requests that really leave.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from maestro_core.boto import silent_boto

__all__ = ["NO_RETRIES", "silence_clients"]

# What `max_retries` has to be for a failed request to be the last. Google counts attempts, and takes 0 for its default.
NO_RETRIES = {"langchain_google_genai": 1, "langchain_google_vertexai": 1}


def silence_clients(model: Any) -> None:
    """Replace the clients of a copied model, each of which keeps its own number of retries, by silent ones."""
    if getattr(model, "root_client", None) is not None:  # ChatOpenAI and its subclasses
        model.root_client = model.root_client.with_options(max_retries=0)
        model.client = model.root_client.chat.completions
        model.root_async_client = model.root_async_client.with_options(max_retries=0)
        model.async_client = model.root_async_client.chat.completions
        return
    for name in ("_client", "_async_client", "_client_params"):  # ChatAnthropic makes them when first used
        model.__dict__.pop(name, None)
    package = type(model).__module__.partition(".")[0]
    # A client of the user's own making may lack these names; it then stays as it is.
    with suppress(AttributeError):
        if package == "langchain_groq":
            for name in ("client", "async_client"):
                sdk = getattr(model, name)._client  # noqa: SLF001
                setattr(model, name, sdk.with_options(max_retries=0).chat.completions)
        elif package == "langchain_openrouter":
            model.client = model._build_client()  # noqa: SLF001
            model.client.sdk_configuration.retry_config = (
                None  # left unset, the client has a default of its own
            )
        elif package == "langchain_aws":
            model.client = silent_boto(model.client)

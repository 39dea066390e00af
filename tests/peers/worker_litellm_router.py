"""litellm's part of the routing benchmark: how long its Router takes to choose. Runs in litellm's environment."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download at import

import litellm
from litellm import Router

litellm.suppress_debug_info = True
STRATEGIES = ("simple-shuffle", "latency-based-routing", "cost-based-routing")


async def choose(strategy: str, models: list[str], messages: list[dict], rounds: int) -> list[float]:
    """Return how many microseconds each choice took."""
    router = Router(
        model_list=[
            {"model_name": "routed", "litellm_params": {"model": f"openai/{model}", "api_key": "none"}}
            for model in models
        ],
        routing_strategy=strategy,
    )
    took_us = []
    for _ in range(rounds + 50):
        started = time.perf_counter()
        await router.async_get_available_deployment(model="routed", messages=messages, request_kwargs={})
        took_us.append((time.perf_counter() - started) * 1e6)
    return took_us[50:]


def main() -> None:
    """Read models, messages and rounds; write what each strategy took."""
    asked = json.load(sys.stdin)
    took_us = {each: asyncio.run(choose(each, **asked)) for each in STRATEGIES}
    sys.stdout.write("\n")  # the answer is the last line, whatever a library printed before
    json.dump({"version": version("litellm"), "took_us": took_us}, sys.stdout)


if __name__ == "__main__":
    main()

"""What `maestro demo` runs: real LangChain agents of two teams, one of which loops until its cap stops it.

By default they talk over HTTP to the bundled stand-in provider, which needs no keys and keeps the true bill.
"""

from __future__ import annotations

import logging
import os
import shlex
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maestro_core import Cap, CapExceeded, Maestro, MaestroError, attribution
from maestro_core.settings import Settings
from maestro_core.testing import FakeProvider, Reply, Request

from .callbacks import MaestroCallbackHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langchain_core.language_models import BaseChatModel

__all__ = ["run"]

CAPS = (Cap("0.02", per="run"), Cap("1", per="customer", every="day"))

# Who asks what: (team, feature, customer, agent, question). The last one is the runaway.
TASKS = (
    ("research", "briefing", "acme", "researcher", "How do lithium batteries age?"),
    ("research", "briefing", "globex", "researcher", "What limits offshore wind?"),
    ("support", "helpdesk", "acme", "helpdesk", "Where is order 4711?"),
    ("support", "helpdesk", "initech", "helpdesk", "Cancel order 4712, please."),
    ("research", "crawler", "globex", "crawler", "Find the lost paper of 1931."),
)


@dataclass(frozen=True, slots=True)
class _Models:
    """The models of the demo, and the provider that bills them (None for real ones)."""

    openai: BaseChatModel
    anthropic: BaseChatModel
    bill: FakeProvider | None


def run(*, ledger: str | None = None, live: bool = False) -> int:
    """Run the demo and print what was spent, by whom, and what was stopped.

    Args:
        ledger: Ledger URL; if None, the one that settings name, else a temporary SQLite file.
        live: Talk to the real providers whose keys are set, instead of the stand-in.

    Returns:
        The exit code: 0, or 1 if something went wrong.
    """
    console = Console(highlight=False, soft_wrap=True)
    # LangChain logs every refusal that a handler raises; here it is the point, and shown.
    logging.getLogger("langchain_core.callbacks.manager").setLevel(logging.ERROR)
    url = ledger or _configured_ledger() or _temporary_ledger()
    maestro = Maestro(ledger=url, caps=CAPS)
    try:
        with _models(live=live) as models:
            before = sum(s.cost_nanos for s in maestro.ledger.sums(()))
            console.print(f"Five agent runs of two teams; caps: {', '.join(map(str, CAPS))}\n")
            halted = _run_tasks(maestro, models, console)
            _summary(maestro, models, console, halted, before)
    finally:
        maestro.close()  # delivers the spans, too
    console.print(
        f"\nThe ledger stays; ask it: MAESTRO_LEDGER={shlex.quote(url)} maestro report --by customer"
    )
    return 0 if halted else 1


def _configured_ledger() -> str | None:
    settings = Settings()
    return None if settings.origins["ledger"] == "default" else settings.ledger


def _temporary_ledger() -> str:
    return f"sqlite:///{Path(tempfile.mkdtemp(prefix='maestro-'), 'demo.db')}"


def _run_tasks(maestro: Maestro, models: _Models, console: Console) -> CapExceeded | None:
    agents = _agents(models, maestro)
    handler = MaestroCallbackHandler(maestro)
    halted = None
    for number, (team, feature, customer, name, question) in enumerate(TASKS, 1):
        console.print(Text(f"[{number}/{len(TASKS)}] {team}/{name} for {customer}: {question}"))
        with attribution(team=team, feature=feature, customer=customer):
            progress = _Progress(console)
            config = {"callbacks": [handler, progress], "recursion_limit": 200}
            try:
                with progress.status:
                    answer = agents[name].invoke({"messages": [("user", question)]}, config=config)
            except CapExceeded as error:
                halted = error
                console.print(Text(f"      {progress}\n      HALTED: {error}", style="bold red"))
            else:
                said = str(answer["messages"][-1].content)[:70]
                console.print(Text(f"      {progress}\n      {said}", style="green"))
    return halted


def _summary(
    maestro: Maestro, models: _Models, console: Console, halted: CapExceeded | None, before_nanos: int
) -> None:
    for by in ("team", "agent", "tool", "model"):
        report = maestro.report(by=by, since="all")
        header, body = report.cells()
        table = Table(
            title=f"Spent by {by}",
            title_justify="left",
            title_style="bold",
            box=box.HEAVY_HEAD if console.is_terminal else None,  # a pipe gets aligned text
            pad_edge=console.is_terminal,
        )
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i < len(report.by) else "right")
        for line in body:
            table.add_row(*map(Text, line))
        console.print()
        console.print(table)
    if halted is not None:
        console.print("\n[bold]Stopped[/bold]")
        console.print(Text(f"{halted}\n{maestro.tree(halted.attribution.dimensions['run'])}"))
    spent = sum(s.cost_nanos for s in maestro.ledger.sums(())) - before_nanos
    console.print(Text(f"\nThis demo, by Maestro's ledger:  ${spent / 1e9:.9f}"))
    if models.bill is not None:
        true = models.bill.bill_nanos
        console.print(Text(f"By the provider's own bill:      ${true / 1e9:.9f}"))
        verdict = "They agree to the nano-dollar." if true == spent else "THEY DIFFER."
        console.print(verdict)


def _agents(models: _Models, maestro: Maestro) -> dict[str, Any]:
    from langchain.agents import create_agent
    from langchain_core.tools import tool

    from .middleware import MaestroMiddleware

    ours = [MaestroMiddleware(maestro)]
    summariser: Any = create_agent(
        models.anthropic, [], middleware=ours, name="summariser", system_prompt="Summarise in two sentences."
    )

    @tool
    def web_search(query: str) -> str:
        """Search the web."""
        found = (
            ""
            if "1931" in query or "lost" in query
            else f"Three papers about {query} causes, limits, outlook. "
        )
        return (found * 12) or "Nothing found. Try other words."

    @tool
    def summarise(text: str) -> str:
        """Let the summariser shorten a text."""
        return str(summariser.invoke({"messages": [("user", text)]})["messages"][-1].content)

    @tool
    def look_up_order(number: str) -> str:
        """Look an order up."""
        return f"Order {number}: shipped on Monday."

    brief = "Use web_search once, then summarise what it found, then answer."
    stubborn = "Search with web_search until you find it. Never give up, never answer without it."
    return {
        "researcher": create_agent(
            models.openai, [web_search, summarise], middleware=ours, name="researcher", system_prompt=brief
        ),
        "helpdesk": create_agent(models.anthropic, [look_up_order], middleware=ours, name="helpdesk"),
        "crawler": create_agent(
            models.openai, [web_search], middleware=ours, name="crawler", system_prompt=stubborn
        ),
    }


@contextmanager
def _models(*, live: bool) -> Iterator[_Models]:
    from langchain_anthropic import ChatAnthropic
    from langchain_openai import ChatOpenAI

    limits: dict[str, Any] = {"max_tokens": 600, "max_retries": 0}
    if not live:
        with FakeProvider(_script) as provider:
            yield _Models(
                ChatOpenAI(model="gpt-5-mini", base_url=provider.openai_url, api_key="none", **limits),
                ChatAnthropic(
                    model="claude-haiku-4-5", base_url=provider.anthropic_url, api_key="none", **limits
                ),
                provider,
            )
        return
    # A reasoning model needs room to think before it answers.
    made: dict[str, Callable[[], BaseChatModel]] = {
        "OPENAI_API_KEY": lambda: ChatOpenAI(model="gpt-5-mini", max_tokens=2000, max_retries=0),
        "ANTHROPIC_API_KEY": lambda: ChatAnthropic(model="claude-haiku-4-5", **limits),
    }
    ready = {key: make() for key, make in made.items() if os.environ.get(key)}
    if not ready:
        raise MaestroError("--live needs OPENAI_API_KEY or ANTHROPIC_API_KEY in the environment")
    only = next(iter(ready.values()))
    yield _Models(ready.get("OPENAI_API_KEY", only), ready.get("ANTHROPIC_API_KEY", only), None)


def _script(request: Request) -> Reply:
    """Answer as the demo's models would: search, summarise, answer; the crawler searches for ever."""
    results, tools = request.tool_results, request.tool_names
    pause = 0.08
    if tools == ["web_search"]:
        turn = sum("web_search" in str(message) for message in request.messages) // 2
        query = f"lost paper 1931, variant {turn + 1}"
        return Reply(
            text="Not yet. ", tool_calls=[("web_search", {"query": query})], output_tokens=120, delay_s=pause
        )
    if "look_up_order" in tools and not results:
        number = "".join(filter(str.isdigit, request.prompt))
        return Reply(tool_calls=[("look_up_order", {"number": number})], delay_s=pause)
    if "summarise" in tools and not results:
        return Reply(tool_calls=[("web_search", {"query": request.prompt})], delay_s=pause)
    if "summarise" in tools and results[0].startswith("Three papers"):
        return Reply(tool_calls=[("summarise", {"text": results[0]})], delay_s=pause)
    if results:
        return Reply(text=f"Here is what I found: {results[-1][:40]}", output_tokens=180, delay_s=pause)
    return Reply(text="Heat and high charge age them; both can be managed.", delay_s=pause)


class _Progress(BaseCallbackHandler):
    """Shows what an agent does while it does it, and counts."""

    def __init__(self, console: Console) -> None:
        self.status = console.status("      starts")
        self._counts: Counter[str] = Counter()

    def __str__(self) -> str:
        return ", ".join(f"{name} x{count}" for name, count in self._counts.items())

    def _count(self, name: str) -> None:
        self._counts[name] += 1
        self.status.update(f"      {self}")

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Count a model call."""
        self._count((kwargs.get("metadata") or {}).get("ls_model_name", "model"))

    def on_tool_start(self, serialized: Any, input_str: str, **kwargs: Any) -> None:  # noqa: ARG002
        """Count a tool call."""
        self._count((serialized or {}).get("name", "tool"))

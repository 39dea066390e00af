"""Maestro's prices beside genai-prices' calculator and litellm's, each in an environment of its own.

    make peers

It makes `.venv-peers/`, prices litellm's catalogue with eleven kinds of usage three times, and writes
`docs/prices-peers.md`. It fails if a difference is in no class that this file explains.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "prices-peers.md"
AT = "2026-11-23T12:00:00+00:00"  # a Monday, off-peak at DeepSeek

SHORT = {"input_tokens": 10_000, "output_tokens": 1_000}
KINDS: dict[str, tuple[str, dict[str, int], str | None]] = {
    "plain": ("10k in, 1k out", SHORT, None),
    "cache read": ("5k of 10k in", {**SHORT, "cache_read_tokens": 5_000}, None),
    "cache write 5m": ("8k of 10k in", {**SHORT, "cache_write_tokens": 8_000}, None),
    "cache write 1h": ("8k of 10k in", {**SHORT, "cache_write_tokens": 8_000, "cache_write_1h_tokens": 8_000}, None),
    "reasoning": ("4k of 5k out", {"input_tokens": 10_000, "output_tokens": 5_000, "output_reasoning_tokens": 4_000}, None),
    "250k in": ("2k out", {"input_tokens": 250_000, "output_tokens": 2_000}, None),
    "300k in": ("200k cached, 2k out", {"input_tokens": 300_000, "cache_read_tokens": 200_000, "output_tokens": 2_000}, None),
    "audio": ("4k in, 500 out, all audio",
              {"input_tokens": 4_000, "input_audio_tokens": 4_000, "output_tokens": 500, "output_audio_tokens": 500}, None),
    "batch": ("10k in, 1k out", SHORT, "batch"),
    "flex": ("10k in, 1k out", SHORT, "flex"),
    "priority": ("10k in, 1k out", SHORT, "priority"),
}  # fmt: skip

REFUSALS = {
    "tier": "Maestro refuses: the price book has no rates for this tier of this model. genai-prices then charges the "
    "standard rate; litellm has one. It takes a `[[prices]]` entry with `tier` and a multiplier.",
    "name": "Maestro refuses: the name is not in the book, nor differs from one only by a date or a cloud's path. "
    "genai-prices takes what begins like it or contains it, although regions and special editions cost more.",
    "provider": "Maestro refuses: the provider is not in the book. genai-prices knows it by its models' names or a part of its own.",
}
UNPRICED = (
    "Maestro has the same number and says that it is too low: a kind without a rate (audio at the text rate, cache "
    "writes at the input rate, output that costs nothing). Under a cap the call settles at its hold."
)
# By litellm's provider: why its number is another, and whose is right as far as known.
BEDROCK = (
    "Bedrock's geographies: by AWS's own page, global profiles are about 10 % below in-region ones, which the book "
    "follows; what eu., apac. and us-gov. add is only in litellm. Claude 3 Opus has no cache rates in the book: "
    "Maestro bills a cached token as input, which is never too low."
)
AZURE = (
    "Azure's own meters (gpt-4-turbo, gpt-audio, DeepSeek, gpt-oss, grok) against the maker's price, which the book "
    "falls back to and which may be too low: a `[[prices]]` entry. Of the gpt-5 pro models the book has the price of long "
    "inputs and litellm has not."
)
SPEECH = (
    "gemini-2.5-pro-preview-tts: cache, audio and long-input rates, which differ in the two. Not decided."
)
DIFFERENCES = {
    "azure": AZURE,
    "azure_ai": AZURE,
    "bedrock": BEDROCK,
    "bedrock_converse": BEDROCK,
    "databricks": "Rounding of Databricks' units, below 0.2 %.",
    "deepseek": "`deepseek-chat` and `deepseek-reasoner` were retired in July 2026, and v3.2 with them: the book keeps "
    "their last prices.",
    "gemini": SPEECH,
    "groq": "A cache rate of 0.0375 against 0.037.",
    "mistral": "Aliases (`mistral-medium`, `-latest`) that stand for other models in the two, where litellm is mostly newer; "
    "mistral-large-4, where the book is; and cache discounts that the book lacks: Maestro then bills a cached token as input.",
    "openai": "Cache discounts of fine-tuned and search models that the book lacks: Maestro bills a cached token as "
    "input, which is never too low. gpt-5.6-cyber beyond 272k tokens: the book lacks the higher price, and is too low.",
    "perplexity": "The fee for each request is in the book, and not in litellm's price of tokens; for models that "
    "Perplexity resells, cache discounts.",
    "vertex_ai": "gemini-2.0-flash, retired: Vertex's price against the Gemini API's. gemma-4-26b-a4b-it, which the Gemini "
    "API serves free (in Google's own naming Vertex's ends in -maas).",
    "vertex_ai-anthropic_models": "Claude 3.5 Haiku: the price before it was lowered is in litellm.",
    "vertex_ai-language-models": SPEECH,
    "xai": "`grok-code-fast-1` was retired in May 2026 and is served as a dearer model, which litellm knows and the book "
    "does not.",
}
RESELLERS = frozenset({"baseten", "cloudflare", "fireworks_ai", "novita", "ovhcloud", "together_ai"})
RESELLER = "Resellers, whose lists change weekly. Not decided."
TOO_LOW = "Maestro says that its number is too low, for want of a rate that litellm has."


@dataclass
class Tally:
    """How one peer compares with Maestro."""

    kinds: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    classes: Counter[str] = field(default_factory=Counter)
    models: dict[str, set[str]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """How often they agree where both name a price and neither says that it is too low."""
        agreed = sum(counts["same"] for counts in self.kinds.values())
        silent = {*REFUSALS.values(), UNPRICED, TOO_LOW}
        both = agreed + sum(cells for why, cells in self.classes.items() if why not in silent)
        return f"Where both name a whole price: {agreed:,} of {both:,} the same, {agreed / max(1, both):.1%}."

    def agree(self, cell: dict[str, Any]) -> None:
        """Count a cell in which both say the same."""
        self.kinds[cell["kind"]]["same"] += 1

    def differ(self, cell: dict[str, Any], why: str | None, ratio: float | None = None) -> None:
        """Count a cell in which they do not, with its class; None is a difference that nobody explained."""
        self.kinds[cell["kind"]]["other"] += 1
        name = f"{cell['provider']}:{cell['model']}"
        if why is None:
            self.unexplained.append(f"{name}, {cell['kind']}: {ratio}")
            why = "NOT EXPLAINED"
        self.classes[why] += 1
        self.models.setdefault(why, set()).add(name)
        if ratio is not None:
            self.ratios.setdefault(why, []).append(ratio)


def environment(name: str, *packages: str) -> Path:
    """Return the Python of an environment with these packages; made once."""
    folder = ROOT / ".venv-peers" / name
    python = folder / "bin" / "python"
    if not python.exists():
        sys.stderr.write(f"making {folder.relative_to(ROOT)} (once) ...\n")
        venv.create(folder, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *packages], check=True
        )
    return python


def run(python: Path | str, worker: str, task: object) -> Any:
    """Run a worker on a task; its answer is the last line that it prints."""
    done = subprocess.run(
        [python, HERE / worker],
        input=json.dumps(task),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout.splitlines()[-1])


def same(ours: Fraction, theirs: Fraction) -> bool:
    """Return whether two amounts of dollars are one, but for a float's rounding."""
    return abs(ours - theirs) <= Fraction(1, 10**12) + abs(theirs) / 10**9


def compare(tally: Tally, cell: dict[str, Any], found: dict[str, Any], usd: str, *, by_group: bool) -> None:
    """Put one cell into its class."""
    if refused := found.get("refused"):
        tally.differ(cell, REFUSALS[refused])
        return
    ours, theirs = Fraction(found["picos"]) / 10**12, Fraction(usd)
    if same(ours, theirs) and not found["unpriced"]:
        tally.agree(cell)
    elif same(ours, theirs):
        tally.differ(cell, UNPRICED)
    else:
        group = cell["group"]
        why = RESELLER if group in RESELLERS else DIFFERENCES.get(group)
        if found["unpriced"] and by_group:
            why = TOO_LOW
        tally.differ(cell, why if by_group else None, float(theirs / ours) if ours else None)


def table(tally: Tally) -> list[str]:
    """Return the counts by kind of usage."""
    lines = ["| usage | | cells | same | agreement |", "|---|---|---|---|---|"]
    rows = [(kind, KINDS[kind][0], counts) for kind, counts in tally.kinds.items()]
    rows.append(("all", "", sum((counts for _, _, counts in rows), Counter())))
    for kind, what, counts in rows:
        cells = counts.total()
        lines.append(
            f"| {kind} | {what} | {cells:,} | {counts['same']:,} | {counts['same'] / max(1, cells):.1%} |"
        )
    return lines


def classes(tally: Tally) -> list[str]:
    """Return why they differ, the largest class first."""
    lines = ["| cells | models | peer / Maestro | why |", "|---|---|---|---|"]
    for why, cells in tally.classes.most_common():
        ratios = sorted(tally.ratios.get(why, ()))
        spread = f"{ratios[0]:.3g} to {ratios[-1]:.3g}" if ratios else ""
        lines.append(f"| {cells:,} | {len(tally.models[why]):,} | {spread} | {why} |")
    return lines


def weights(measures: dict[str, dict[str, Any]]) -> list[str]:
    """Return what each calculator takes."""
    lines = ["| | Maestro | genai-prices | litellm |", "|---|---|---|---|"]
    rows = {
        "version": ("version", "{}"), "a price": ("price_us", "{:.1f} us"), "a bound": ("bound_us", "{:.1f} us"),
        "import": ("import_s", "{:.2f} s"), "the first price": ("first_s", "{:.2f} s"),
        "memory after import": ("import_mb", "+{:.0f} MB"), "memory after the first price": ("priced_mb", "+{:.0f} MB"),
    }  # fmt: skip
    for name, (key, form) in rows.items():
        cells = [form.format(each[key]) if key in each else "none" for each in measures.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def page(genai: Tally, litellm: Tally, pairs: int, measures: dict[str, dict[str, Any]]) -> str:
    """Return the whole page."""
    text = [
        "# Prices beside other calculators", "",
        "Made by `make peers`; not by hand. Every model of litellm's catalogue that genai-prices finds, too, priced with",
        f"eleven kinds of usage: {pairs:,} models, each only with the usage that litellm has a rate for. Prices of",
        f"{AT[:10]}. Two amounts are the same if they differ by less than a billionth.", "",
        *weights(measures), "",
        "Peers have no bound: nothing of theirs says before a call what it can cost at most.", "",
        "## genai-prices' calculator", "",
        "The same data, priced by another calculator.", "",
        genai.verdict, "", *table(genai), "", *classes(genai), "",
        "## litellm", "",
        "Other data, kept by other people. litellm uses the clock of the machine, and floats.", "",
        litellm.verdict, "", *table(litellm), "", *classes(litellm), "",
    ]  # fmt: skip
    return "\n".join(text)


def main() -> int:
    """Compare, write the page, and return 1 if a difference is not explained."""
    kinds = {kind: {"counts": counts, "tier": tier} for kind, (_, counts, tier) in KINDS.items()}
    theirs = run(environment("litellm", "litellm"), "worker_litellm.py", kinds)
    task = {"at": AT, "kinds": kinds, "cells": theirs["cells"]}
    genai = run(environment("genai-prices", "genai-prices"), "worker_genai.py", task)
    ours = run(sys.executable, "worker_maestro.py", task)
    by_genai, by_litellm, pairs = Tally(), Tally(), set()
    for cell, (usd, _), found in zip(theirs["cells"], genai["usd"], ours["found"], strict=True):
        if usd.startswith("error"):
            continue
        pairs.add((cell["provider"], cell["model"]))
        compare(by_genai, cell, found, usd, by_group=False)
        if not cell["usd"].startswith("error"):
            compare(by_litellm, cell, found, cell["usd"], by_group=True)
    measures = {"maestro": ours["measures"], "genai": genai["measures"], "litellm": theirs["measures"]}
    PAGE.write_text(page(by_genai, by_litellm, len(pairs), measures), encoding="utf-8")
    for line in (*by_genai.unexplained, *by_litellm.unexplained):
        sys.stderr.write(f"not explained: {line}\n")
    sys.stdout.write(f"wrote {PAGE.relative_to(ROOT)}\n")
    return int(bool(by_genai.unexplained or by_litellm.unexplained))


if __name__ == "__main__":
    sys.exit(main())

"""The routing guide runs as it stands, and its table is what the code does."""

from __future__ import annotations

import math
import re
from pathlib import Path

from maestro_core.failures import TREATMENTS, Failure
from maestro_core.routing import STAGES
from maestro_core.testing import Reply

GUIDE = (Path(__file__).parents[1] / "docs/routing.md").read_text(encoding="utf-8")


def test_its_blocks_run_in_order(provider, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name, url in (("OPENAI", provider.openai_url), ("ANTHROPIC", provider.anthropic_url)):
        monkeypatch.setenv(f"{name}_BASE_URL", url)
        monkeypatch.setenv(f"{name}_API_KEY", "none")
    provider.reply = Reply(text="fine", input_tokens=40, output_tokens=20)
    scope = {}
    for block in re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "routing.md", "exec"), scope)  # noqa: S102 - that is the test
    assert [request.model for request in provider.requests] == ["gpt-5-mini", "claude-sonnet-5", "gpt-5-mini", "gpt-5-mini", "claude-sonnet-5", "gpt-5-nano"]  # fmt: skip
    shown = capsys.readouterr().out
    assert shown.startswith("gpt-5-mini ")
    assert "claude-sonnet-5" in shown
    counted = [scope[name].report(since="all").total for name in ("maestro", "tight")]
    assert sum(counted) == provider.bill
    for name in ("maestro", "tight"):
        scope[name].close()


def breaker(kind):
    failure = Failure(kind=kind)
    if failure.breaker == "ignores":
        return "ignores it"
    if failure.breaker == "counts":
        assert Failure(kind=kind, retry_after_s=7.0).open_s == 7
        return "counts; Retry-After opens it for that long"
    if failure.open_s == math.inf:
        return "opens until the configuration changes"
    assert Failure(kind=kind, retry_after_s=7.0).open_s == 7
    return f"opens for {failure.open_s / 60:.0f} minutes, or as Retry-After says"


def test_its_table_of_failures_is_what_the_code_does():
    said = [
        f"| `{kind}` | {each.meaning} | {'yes' if each.fails_over else 'no'} | {'yes' if each.retries else 'no'} | {breaker(kind)} |"
        for kind, each in TREATMENTS.items()
    ]
    assert [line for line in GUIDE.splitlines() if re.match(r"\| `\w+` \| .* \| (yes|no) \|", line)] == said


def test_its_stages_are_in_their_order():
    rows = re.search(r"\| stage \|.*?\n\|---.*?\n(.*?)\n\n", GUIDE, re.DOTALL)[1]
    names = [row.split("|")[1].strip().lower() for row in rows.splitlines()]
    assert names == [{"latency": "sla"}.get(stage.__name__, stage.__name__) for stage in STAGES] + ["cost"]

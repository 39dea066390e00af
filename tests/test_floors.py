"""Imports go down only, adapters use what is public, and `import maestro_core` stays light.

Imports inside functions count: they run, if later. Imports for type checkers may point anywhere: nothing runs.
"""

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The house, from the ground up. Modules of one floor may import each other.
FLOORS = {
    0: "_version blocks boto errors money types clock auto forks quick",
    1: "settings routes rules hookspecs plugins attribution usage prices estimate prefixes",
    2: "caps waiting latches fitting ledger",
    3: "forecasts endpoints failures health cachestate learned deadlines routing anomaly loops",
    4: "telemetry alerts",
    5: "maestro admission payers declared circles doors grants incidents thresholds contributors suspicions watch history quote refusal runs runtree turns spool"
    " open_call queries router attempts journey sending exits",
    6: "report backtest export testing",
    7: "cli terminal web",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}

# Names that `maestro_core` itself exports load what they need, the core included.
ROOF = 5


@dataclass(frozen=True)
class Import:
    """One imported name: `from module import name`, or `import module` with an empty name."""

    path: Path
    line: int
    module: str
    name: str

    def __str__(self):
        where = f"{self.path.relative_to(ROOT)}:{self.line}"
        return f"{where} imports {self.name or 'it'} from {self.module}"


def modules(*packages):
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def relative(path):
    return str(path.relative_to(ROOT))


def only_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path, source=None, *, types=False):
    """Yield every import in a file; those for type checkers only if `types`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    waiting = list(ast.parse(source or path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield Import(path, node.lineno, module, alias.name)
        elif only_for_types(node) and not types:
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def top_module(found):
    """Return which module of `maestro_core` an import reaches, "" for the package itself, None for elsewhere."""
    parts = [*found.module.split("."), found.name]
    if parts[0] != "maestro_core":
        return None
    return parts[1] if parts[1] in FLOOR_OF or len(parts) > 2 else ""


def climbs(found):
    """Return whether an import goes up."""
    here = found.path.relative_to(ROOT / "maestro_core").with_suffix("").parts[0]
    target = top_module(found)
    if target is None:
        return found.module.partition(".")[0].startswith("maestro_")
    if target == "":
        return FLOOR_OF[here] <= ROOF
    return FLOOR_OF[target] > FLOOR_OF[here]


CORE = [path for path in modules("maestro_core") if path != ROOT / "maestro_core/__init__.py"]


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_every_module_stands_on_a_floor(path):
    here = path.relative_to(ROOT / "maestro_core").with_suffix("").parts[0]
    assert here in FLOOR_OF, f"give {here!r} a floor in FLOORS"


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_imports_go_down(path):
    assert [str(found) for found in imports(path) if climbs(found)] == []


def test_the_package_itself_imports_only_the_ground_floors():
    init = ROOT / "maestro_core/__init__.py"
    reached = {top_module(found) for found in imports(init)} - {None}
    assert {name for name in reached if FLOOR_OF[name] > 1} == set()


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("caps", "from .maestro import Maestro"),
        ("caps", "from . import maestro"),
        ("caps", "import maestro_core.maestro"),
        ("caps", "from maestro_core import Maestro"),
        ("caps", "import maestro_core"),
        ("caps", "import maestro_langchain"),
        ("caps", "def f():\n    from .telemetry import Telemetry"),
        ("caps", "if TYPE_CHECKING:\n    pass\nelse:\n    from .telemetry import Telemetry"),
        ("caps", "try:\n    pass\nexcept E:\n    from .telemetry import Telemetry"),
        ("ledger/memory", "from ..maestro import Maestro"),
        ("ledger/memory", "from maestro_core.cli import main"),
        ("types/_call", "from maestro_core.settings import Settings"),
        ("maestro", "from . import report"),
    ],
)
def test_the_test_sees_what_climbs(where, source):
    assert [climbs(found) for found in imports(ROOT / f"maestro_core/{where}.py", source)] == [True]


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("caps", "from .errors import SettingsError"),
        ("caps", "import json\nfrom pathlib import Path"),
        ("caps", "if TYPE_CHECKING:\n    from .maestro import Maestro"),
        ("ledger/memory", "from ._rules import admit\nfrom maestro_core.caps import charges"),
        ("maestro", "from . import queries\nfrom .ledger import open_ledger"),
        ("cli/demo", "from maestro_core import Maestro"),
    ],
)
def test_the_test_lets_pass_what_does_not_climb(where, source):
    assert not any(climbs(found) for found in imports(ROOT / f"maestro_core/{where}.py", source))


ADAPTERS = ["maestro_langchain", "maestro_llamaindex"]
GUESTS = [*modules(*ADAPTERS), *modules("examples")]


def private(found):
    """Return why an import from `maestro_core` is not of something public, or None."""
    if (
        any(part.startswith("_") for part in (*found.module.split("."), found.name))
        and found.name != "__version__"
    ):
        return "an underscored name"
    if found.name and found.name not in import_module(found.module).__all__:
        return "not in __all__"
    return None


@pytest.mark.parametrize("path", GUESTS, ids=relative)
def test_adapters_and_examples_use_what_is_public(path):
    core = [found for found in imports(path, types=True) if found.module.partition(".")[0] == "maestro_core"]
    assert [f"{found}: {why}" for found in core if (why := private(found))] == []


@pytest.mark.parametrize("path", modules(*ADAPTERS), ids=relative)
def test_adapters_do_not_know_each_other(path):
    own = path.relative_to(ROOT).parts[0]
    others = {*ADAPTERS, "maestro_llamaindex", "maestro_langchain"} - {own}
    assert {found.module.partition(".")[0] for found in imports(path, types=True)} & others == set()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("maestro_core.types._call", "Call"),
        ("maestro_core", "_version"),
        ("maestro_core.errors", "_rebuild"),
        ("maestro_core.money", "PICO"),
        ("maestro_core.types", "to_usd"),
    ],
)
def test_the_test_sees_what_is_private(module, name):
    assert private(Import(ROOT / "x.py", 1, module, name))


# Those whose framework is installed here.
RUNNING = [
    name
    for name, framework in (("maestro_langchain", "langchain_core"), ("maestro_llamaindex", "llama_index"))
    if find_spec(framework)
]
IMPORTABLE = [path for path in modules("maestro_core", *ADAPTERS) if path.name != "__main__.py"]


@pytest.mark.parametrize("path", IMPORTABLE, ids=relative)
def test_every_module_says_what_it_exports(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    assert "__all__" in {target.id for target in targets if isinstance(target, ast.Name)}


def loaded_after(code):
    """Return the top-level modules that a fresh interpreter has loaded after running some code."""
    report = "import json, sys; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout))


HEAVY = {
    "pydantic",
    "pydantic_settings",
    "opentelemetry",
    "genai_prices",
    "langchain_core",
    "rich",
    "typer",
    "sqlite3",
}


@pytest.mark.parametrize(
    "code",
    [
        "import maestro_core",
        "from maestro_core import Cap, CapExceeded, attribution\nCap('5')\nwith attribution(team='x'): pass",
        "import maestro_core.testing.plugin",
    ],
)
def test_importing_the_core_is_light(code):
    loaded = loaded_after(code)
    assert "maestro_core" in loaded
    assert loaded & HEAVY == set()


def test_the_langchain_adapter_needs_langchain_core_alone():
    loaded = loaded_after("from maestro_langchain import MaestroCallbackHandler")
    assert "langchain_core" in loaded
    # What LangChain itself loads depends on what else is installed.
    loaded -= loaded_after("import langchain_core.tracers.context")
    assert (
        loaded & {"llama_index", "langchain", "langchain_openai", "langchain_anthropic", "rich", "typer"}
        == set()
    )


def test_the_llamaindex_adapter_needs_llama_index_core_alone():
    pytest.importorskip("llama_index.core", reason="LlamaIndex is not installed: pip install --group test")
    loaded = loaded_after("from maestro_llamaindex import MaestroCallbackHandler, RoutedLLM, attach, install")
    assert "llama_index" in loaded
    strange = {"langchain", "langchain_core", "langgraph", "openai", "anthropic", "rich", "typer"}
    assert loaded & strange == set()


@pytest.mark.parametrize(
    ("adapter", "framework"),
    [("maestro_langchain", "langchain_core"), ("maestro_llamaindex", "llama_index")],
)
def test_an_adapter_without_its_framework_names_the_extra(adapter, framework):
    extra = adapter.removeprefix("maestro_")
    code = f"import sys; sys.modules[{framework!r}] = None; import {adapter}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f': pip install "maestro-finops[{extra}]"')


def test_every_public_name_can_be_imported():
    for package in ("maestro_core", *RUNNING):
        module = import_module(package)
        assert [name for name in module.__all__ if not hasattr(module, name)] == []
        assert set(module.__all__) <= set(dir(module))


# Where a plain lock is right: what makes locks, transactions (guarded as a whole), what a fork makes anew.
PLAIN_LOCKS = {"forks.py", "ledger/_database.py", "alerts/lanes.py"}


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_no_fork_leaves_a_lock_taken(path):
    name = path.relative_to(ROOT / "maestro_core").as_posix()
    if name in PLAIN_LOCKS or name.startswith("testing/"):
        return
    made = re.findall(r"threading\.(?:Lock|RLock|Condition)\(", path.read_text(encoding="utf-8"))
    assert made == [], "make it with maestro_core.forks.fork_safe_lock()"

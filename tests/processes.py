"""Worker processes for tests: they make real calls on one ledger to one stand-in provider, and may be killed.

The test's process runs the provider, which keeps the true bill. A *nursery* (this file, run as a script) imports
everything once and forks workers on demand, so that a new worker costs milliseconds. Each call has a name, which is its
run in the ledger and its prompt at the provider: both sides can be compared call by call.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from maestro_core import CapExceeded, Maestro, Usage, attribution
from maestro_core.errors import LedgerUnavailable, MaestroError
from maestro_core.types import Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from maestro_core.testing import FakeProvider
    from maestro_core.types import Ledger

__all__ = ["Job", "Nursery", "Outcome", "Worker", "billed", "booked"]

_LIMIT_S = 120  # a worker that hangs ends itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker does.

    Args:
        calls: How many calls it makes in all; it goes on until it is killed if None.
        threads: How many threads make them.
        tasks: If not 0, how many tasks of one event loop make them, instead of threads.
        door: `core` never waits; `door` waits as the agent doors do; `handler` is a ChatOpenAI with the callback
            handler; `agent` is `create_agent` with the middleware (both in threads only).
        attribution: Dimensions of every call, besides its run.
        seed: Of the pauses between calls.
        pause_s: The longest pause before a call.
        together: Whether nobody in it calls before all workers of `Nursery.run` are ready to.
        late_s: For how long it waits after that.
    """

    calls: int | None = None
    threads: int = 1
    tasks: int = 0
    door: str = "core"
    attribution: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    pause_s: float = 0.0
    together: bool = False
    late_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended for its worker: `served`, a reason of `CapExceeded`, `unavailable`, or `error`."""

    call: str
    kind: str
    took_s: float
    why: str = ""
    began_s: float = 0.0  # since 1970


class Worker:
    """One worker process, seen from the test."""

    def __init__(self, nursery: Nursery, name: str, pid: int, log: Path, job: Job) -> None:
        self.name = name
        self.pid = pid
        self.job = job
        self.log = log
        self._nursery = nursery
        self._code: int | None = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens to a worker that has ended and was waited for."""
        if self._code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it at once, wherever it is."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Wait for its end; return its exit code, negative for a signal."""
        if self._code is None:
            self._code = self._nursery.ask({"wait": self.pid})["code"]
        return self._code

    def outcomes(self) -> list[Outcome]:
        """Return what it said of its calls so far."""
        lines = self.log.read_text(encoding="utf-8").split("\n")[:-1] if self.log.exists() else []
        return [Outcome(**json.loads(line)) for line in lines]


class Nursery:
    """Starts workers: `with Nursery(provider, folder, ledger=url, caps=[...]) as nursery: nursery.start(Job(...))`.

    Args:
        provider: The stand-in, running in the test's process.
        folder: Where workers write what they did.
        prefork: Whether the workers inherit a `Maestro` that was made before they were forked, as with gunicorn's
            `preload_app`; otherwise each makes its own.
        settings: Of every worker's `Maestro`, as JSON values; `caps` as `{"limit": "0.5", "per": "customer"}`.
    """

    def __init__(
        self, provider: FakeProvider, folder: Path, *, prefork: bool = False, **settings: Any
    ) -> None:
        self._folder = folder
        self._workers: list[Worker] = []
        self._said = (folder / "nursery.log").open("ab")  # warnings of refused calls by the thousand
        options = {"url": provider.openai_url, "settings": settings, "prefork": prefork}
        root = str(Path(__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(_LIMIT_S)
        self._process.stdout.close()  # type: ignore[union-attr]
        self._said.close()

    def start(self, job: Job, *, name: str = "") -> Worker:
        """Start a worker; its calls are named after it."""
        name = name or f"w{len(self._workers)}"
        log = self._folder / f"{name}.jsonl"
        answer = self.ask({"start": asdict(job), "name": name, "log": str(log)})
        worker = Worker(self, name, answer["pid"], log, job)
        self._workers.append(worker)
        return worker

    def run(self, jobs: Iterable[Job]) -> list[Worker]:
        """Start a worker for each job, all at once, and wait for them."""
        workers = [self.start(job) for job in jobs]
        if any(worker.job.together for worker in workers):
            _wait_for([worker.log.with_suffix(".ready") for worker in workers])
            (self._folder / "go").touch()
        codes = [worker.wait() for worker in workers]
        assert codes == [0] * len(codes), codes
        return workers

    def outcomes(self) -> list[Outcome]:
        """Return what all workers said of their calls."""
        return [outcome for worker in self._workers for outcome in worker.outcomes()]

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Say something to the nursery's process and return its answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the nursery ended with {self._process.wait(_LIMIT_S)}"
        return json.loads(line)


def billed(provider: FakeProvider) -> Counter[str]:
    """Return the true bill in nano-dollars, by the name of the call."""
    names = {request.number: request.prompt for request in provider.requests}
    bill: Counter[str] = Counter()
    for charge in provider.charges:
        bill[names[charge.request]] += charge.nanos
    return bill


def booked(ledger: Ledger) -> Counter[str]:
    """Return what the ledger counts in nano-dollars, settled and presumed, by the name of the call."""
    book: Counter[str] = Counter()
    for record in ledger.records():
        book[record.run or ""] += record.cost_nanos
    return book


def _wait_for(paths: Iterable[Path]) -> None:
    until_s = time.monotonic() + _LIMIT_S
    for path in paths:
        while not path.exists():
            assert time.monotonic() < until_s, f"nobody wrote {path}"
            time.sleep(0.002)


# --- in the nursery and its workers


class _Caller:
    """Makes the calls of one worker."""

    def __init__(self, maestro: Maestro, url: str, job: Job, name: str, log: Path) -> None:
        self._maestro, self._url, self._job, self._name = maestro, url, job, name
        self._log_path, self._log = log, log.open("a", encoding="utf-8", buffering=1)
        self._barrier = threading.Barrier(job.threads, self._ready)
        self._lock = threading.Lock()
        self._chance = random.Random(job.seed)
        self._next = 0

    def run(self) -> None:
        if self._job.together:
            self._maestro.admission.quotes.bound(_call(self._name))  # reads the price book
        if self._job.tasks:
            asyncio.run(self._tasks())
            return
        threads = [threading.Thread(target=self._thread) for _ in range(self._job.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ready(self) -> None:
        """Wait until everybody is, in all workers."""
        if self._job.together:
            self._log_path.with_suffix(".ready").touch()
            _wait_for([self._log_path.with_name("go")])
            time.sleep(self._job.late_s)

    def _claim(self) -> str | None:
        with self._lock:
            if self._next == self._job.calls:
                return None
            self._next += 1
            return f"{self._name}-{self._next}"

    def _thread(self) -> None:
        with httpx.Client(timeout=_LIMIT_S) as client:
            send = getattr(self, f"_{self._job.door}")
            self._barrier.wait()
            while (name := self._claim()) is not None:
                time.sleep(self._chance.uniform(0, self._job.pause_s))
                with self._told(name):
                    send(client, name)

    async def _tasks(self) -> None:
        async with httpx.AsyncClient(timeout=_LIMIT_S) as client, asyncio.TaskGroup() as group:
            self._ready()
            for _ in range(self._job.tasks):
                group.create_task(self._task(client))

    async def _task(self, client: httpx.AsyncClient) -> None:
        while (name := self._claim()) is not None:
            await asyncio.sleep(self._chance.uniform(0, self._job.pause_s))
            with self._told(name):
                call = _call(name)
                doors = self._maestro.doors
                held = (
                    await doors.areserve(call, fits=False)
                    if self._job.door == "door"
                    else await self._maestro.areserve(call)
                )
                response = await client.post(**self._request(name))
                await self._maestro.asettle(held, response.raise_for_status().json())

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Write down how the call ended, in one line that a kill leaves whole or away."""
        began, began_s = time.monotonic(), time.time()
        kind, why = "served", ""
        try:
            with attribution(run=name, **self._job.attribution):
                yield
        except CapExceeded as error:
            kind, why = error.reason, str(error)
        except LedgerUnavailable as error:
            kind, why = "unavailable", str(error)
        except (MaestroError, httpx.HTTPError) as error:
            kind, why = "error", repr(error)
        outcome = Outcome(name, kind, round(time.monotonic() - began, 3), why, began_s)
        self._log.write(json.dumps(asdict(outcome)) + "\n")

    def _core(self, client: httpx.Client, name: str) -> None:
        self._send(client, name, self._maestro.reserve(_call(name)))

    def _door(self, client: httpx.Client, name: str) -> None:
        self._send(client, name, self._maestro.doors.reserve(_call(name), fits=False))

    def _send(self, client: httpx.Client, name: str, held: Any) -> None:
        response = client.post(**self._request(name))
        self._maestro.settle(held, response.raise_for_status().json())

    def _request(self, name: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": name}]
        body = {"model": "gpt-5-mini", "messages": messages, "max_completion_tokens": 100}
        return {"url": f"{self._url}/chat/completions", "json": body}

    def _handler(self, client: httpx.Client, name: str) -> None:
        from maestro_langchain import MaestroCallbackHandler

        handler = MaestroCallbackHandler(self._maestro)
        self._model.invoke(name, config={"callbacks": [handler]})

    def _agent(self, client: httpx.Client, name: str) -> None:
        from langchain.agents import create_agent

        from maestro_langchain import MaestroMiddleware

        agent = create_agent(self._model, [], middleware=[MaestroMiddleware(self._maestro)])
        agent.invoke({"messages": [("user", name)]})

    @cached_property
    def _model(self) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(
            model="gpt-5-mini", base_url=self._url, api_key="none", max_tokens=100, max_retries=0
        )


def _call(name: str) -> Call:
    message = {"role": "user", "content": name}
    return Call(provider="openai", model="gpt-5-mini", input=[message], max_output_tokens=100)


def _work(options: dict[str, Any], maestro: Maestro | None, question: dict[str, Any]) -> None:
    """Be a worker: never return to the nursery's loop."""
    code = 1
    try:
        signal.alarm(_LIMIT_S)
        own = maestro or Maestro(**_settings(options))
        caller = _Caller(
            own, options["url"], Job(**question["start"]), question["name"], Path(question["log"])
        )
        caller.run()
        own.close()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the child must not run the nursery's code
        traceback.print_exc()
    finally:
        os._exit(code)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    from maestro_core import Cap

    settings = dict(options["settings"])
    return {**settings, "caps": [Cap(**cap) for cap in settings.get("caps", ())]}


@cache
def _warm_up(door: str = "") -> None:
    """Load what every worker would have to load, once."""
    with closing(Maestro(ledger="memory:")) as maestro:
        maestro.settle(maestro.reserve(_call("warm-up")), Usage(input_tokens=1, output_tokens=1))
    if door in {"handler", "agent"}:
        import langchain.agents
        import langchain_openai  # noqa: F401

        import maestro_langchain

        _ = langchain.agents.create_agent, maestro_langchain.MaestroMiddleware  # loaded when first asked for


def _main() -> None:
    options = json.loads(sys.argv[1])
    _warm_up()
    maestro = Maestro(**_settings(options)) if options["prefork"] else None
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            _warm_up(question["start"]["door"])
            pid = os.fork()
            if pid == 0:
                os.dup2(2, 1)  # the nursery's answers are its own
                _work(options, maestro, question)
            answer = {"pid": pid}
        else:
            _, status = os.waitpid(question["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()

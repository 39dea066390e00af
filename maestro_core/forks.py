"""What `os.fork` finds and leaves: nobody inside a lock, and a child that knows that it is one.

A fork copies locks as they are, and no thread but one: a lock that another thread holds stays locked for ever in the
child. So every lock that is guarded here is taken before a fork and given back on both sides after it.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Guarded", "before_the_end", "fork_safe_lock", "guard", "tell_child"]

# A fork does not wait longer than this for one lock. Only a long report holds one for more than a moment.
_PATIENCE_S = 10.0


class Guarded(Protocol):
    """What can be taken before a fork: a lock, or something that has to rest while it happens."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as a lock has it
        """Take it; return whether that was in time."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


_outer: weakref.WeakSet[Guarded] = weakref.WeakSet()
_middle: weakref.WeakSet[Guarded] = weakref.WeakSet()
_inner: weakref.WeakSet[Guarded] = weakref.WeakSet()
# Object and function of each bound method. A `weakref.WeakMethod` complains when the interpreter ends before it.
_children: list[tuple[weakref.ref[object], Callable[[object], None]]] = []
_taken: list[Guarded] = []
_forking = threading.Lock()


def fork_safe_lock(*, outer: bool = False) -> threading.Lock:
    """Return a new lock that no fork leaves locked in the child.

    Args:
        outer: Whether other guarded locks are taken inside it.
    """
    lock = threading.Lock()
    (_outer if outer else _inner).add(lock)
    return lock


def guard(something: Guarded) -> None:
    """Take this before every fork and give it back after it, on both sides, for as long as it lives.

    Inner locks may be taken inside it.
    """
    _middle.add(something)


def tell_child(method: Callable[[], None]) -> None:
    """Call a bound method in every forked child, once its locks are free, for as long as its object lives."""
    _children[:] = [each for each in _children if each[0]() is not None]
    _children.append((weakref.ref(method.__self__), method.__func__))  # type: ignore[attr-defined]


def before_the_end(owner: object, finish: Callable[[], object]) -> None:
    """In a child that was forked just now: call this when it ends, if `owner` lives and `multiprocessing` has made it.

    Such a child ends without `atexit`. Like there, threads that are no daemons are waited for first.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is None:
        return

    def finish_last() -> None:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        finish()

    # What is registered before the child's own work begins is forgotten; this is asked then.
    util.register_after_fork(owner, lambda _: util.Finalize(None, finish_last, exitpriority=0))


def _before() -> None:
    _forking.acquire()
    # Outer ones first, as threads take them; else the fork and a thread would wait for each other.
    _taken.extend(each for each in (*_outer, *_middle, *_inner) if each.acquire(timeout=_PATIENCE_S))


def _after() -> None:
    while _taken:
        _taken.pop().release()
    if _forking.locked():  # else some server forked behind Python's back and told it only afterwards
        _forking.release()


def _after_in_child() -> None:
    _after()
    for found, tell in tuple(_children):
        if (living := found()) is not None:
            tell(living)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)

"""Which processes hold money in a ledger file, and which of them are gone.

An owner is one locked byte, at a place chosen at random, of the empty file `NAME-owners` beside the ledger. The system
keeps such a lock while the process sleeps or is stopped, frees it when the process ends in whatever way, and does not
give it to a forked child. There is nothing to clean up and no moment at which a living owner looks gone: the byte is
locked before its name is written anywhere, and never used again.
"""

from __future__ import annotations

import os
import re
import secrets
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maestro_core.errors import LedgerUnavailable
from maestro_core.forks import fork_safe_lock, tell_child

try:
    import fcntl
except ImportError:  # Windows: nobody is known to be gone; `hold_ttl_s` alone decides
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Owners"]

_NAME = re.compile(r"\d+-([0-9a-f]{16})")
_BITS = 62  # a place in a file is a signed number of 64 bits


@dataclass(slots=True, weakref_slot=True, eq=False)
class _OwnersFile:
    """The file as this process has it open. It is opened once: closing any copy would drop all its locks."""

    path: Path
    identity: tuple[int, int]
    descriptors: list[int]
    place: int = 0
    pid: int = 0
    name: str = ""
    inherited: set[str] = field(default_factory=set)  # the processes that this one was forked from
    address: str = ""  # the path as text

    def __post_init__(self) -> None:
        self.address = str(self.path)
        tell_child(self.forked)

    def forked(self) -> None:
        """This is another process now, and the one before was another owner."""
        if self.name:
            self.inherited.add(self.name)
        self.pid, self.name = 0, ""

    def claimed(self) -> str:
        """Return this process's name, or "" if it has none yet."""
        return self.name if self.pid == os.getpid() else ""

    def keep(self) -> bool:
        """Lock the own byte again, if it is not; return whether the file is still the one that others look at.

        Whatever else of this program opens and closes the file (a backup, say) drops the lock.
        """
        if fcntl is not None:
            try:  # noqa: SIM105 - `suppress` takes longer than the lock, and every reserve comes here
                fcntl.lockf(self.descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.place)
            except BlockingIOError:
                pass  # somebody is just looking
        try:
            found = os.stat(self.address)  # noqa: PTH116 - half as long as Path.stat
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self.identity


# By device and inode; and how many ledgers of this process are open at a path: it is an owner until the last is closed.
_files: dict[tuple[int, int], _OwnersFile] = {}
_ledgers: Counter[Path] = Counter()
_lock = fork_safe_lock()


class Owners:
    """The owners of one ledger file, as one ledger sees them. All ledgers of a process on a file are one owner.

    Args:
        path: The ledger file.
    """

    def __init__(self, path: Path) -> None:
        # As SQLite does for its own files, so that all names of a ledger lead to the same place.
        self._ledger = path.resolve()
        self._path = self._ledger.with_name(f"{self._ledger.name}-owners")
        self._file: _OwnersFile | None = None
        with _lock:
            _ledgers[self._path] += 1

    def name(self) -> str:
        """Return the name of this process as an owner, which lives as long as it does.

        Raises:
            LedgerUnavailable: If the owners' file cannot be opened or locked.
        """
        try:
            file = self._file or self._opened()
            if file.claimed():
                if file.keep():
                    return file.name
                self._file = None
                file = self._opened()
            return file.claimed() or self._claim(file)
        except OSError as error:
            raise LedgerUnavailable(
                f"the file {self._path}, which shows who is alive, cannot be used: {error.strerror};"
                " let this process create and write it"
            ) from error

    def gone(self, name: str) -> bool:
        """Return whether the process of that name has ended. One that cannot be known to have ended has not."""
        found = _NAME.fullmatch(name)
        if fcntl is None or found is None:
            return False
        try:
            file = self._opened()
            if name == file.claimed():  # the own lock would be got, and lost
                return False
            place = int(found[1], 16)
            fcntl.lockf(file.descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            fcntl.lockf(file.descriptors[0], fcntl.LOCK_UN, 1, place)
        except OSError:
            return False
        return True

    def inherited(self, name: str) -> bool:
        """Return whether this process was forked from the one of that name."""
        file = self._file
        return file is not None and (
            name in file.inherited or (name == file.name and file.pid != os.getpid())
        )

    def claimed(self) -> list[str]:
        """Return the names of this process as an owner of this ledger: one, or none yet (more, if the file was lost)."""
        return [file.name for file in tuple(_files.values()) if file.path == self._path and file.claimed()]

    def close(self, *, keep: bool) -> None:
        """Stop being an owner, unless another ledger of this process on this file is open. To be called once.

        With `keep`, stay one until the process ends: it holds money that it may yet settle through another ledger.
        """
        with _lock:
            self._file = None
            _ledgers[self._path] -= 1
            if _ledgers[self._path]:
                return
            del _ledgers[self._path]
            if keep:
                return
            for identity, file in tuple(_files.items()):
                if file.path == self._path:
                    del _files[identity]
                    for descriptor in file.descriptors:
                        os.close(descriptor)

    def _opened(self) -> _OwnersFile:
        if self._file is None:
            with _lock:
                if self._file is None:
                    self._file = self._open()
        return self._file

    def _open(self) -> _OwnersFile:
        with suppress(FileNotFoundError):
            found = _files.get(_identity(self._path.stat()))
            if found:
                return found
        descriptor = _create(self._path, self._ledger)
        identity = _identity(os.fstat(descriptor))
        file = _files.setdefault(identity, _OwnersFile(self._path, identity, []))
        file.descriptors.append(descriptor)
        return file

    def _claim(self, file: _OwnersFile) -> str:
        with _lock:
            if not file.claimed():
                file.forked()  # also if that went on behind Python's back
                pid = os.getpid()
                if fcntl is None:
                    file.name = f"{pid}-{secrets.token_hex(4)}"
                else:
                    file.place = secrets.randbits(_BITS)
                    fcntl.lockf(file.descriptors[0], fcntl.LOCK_EX, 1, file.place)
                    file.name = f"{pid}-{file.place:016x}"
                file.pid = pid
            return file.name


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _create(path: Path, ledger: Path) -> int:
    """Open the owners' file; a new one gets the ledger's owner and permissions, as SQLite does for its own files."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, os.O_RDWR)
    with suppress(OSError, AttributeError):  # AttributeError: Windows
        like = ledger.stat()
        os.fchmod(descriptor, like.st_mode & 0o666)
        if os.geteuid() == 0:
            os.fchown(descriptor, like.st_uid, like.st_gid)
    return descriptor

"""TokenFile: tokens that the operating system counts, as locks on the bytes of one file.

A lock belongs to the open file (`F_OFD_SETLK`), so the kernel drops all locks of a process in the moment in which it
ends, however it ends. Two properties of such locks matter here. An open file never conflicts with its own locks, so
each member opens the file itself, and remembers what it holds. A forked child shares its parent's open file, and keeps
the parent's locks alive until it closes that file: so each child closes it at once.
"""

import fcntl
import os
import stat
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

from ..errors import PoolConfigError

# The file holds the total, then the process id of each member, then the member of each token. A lock on a record
# says that the record is in use, and the one on the total is held by a member that joins.
TOTAL = struct.Struct("=q")
PROCESS = struct.Struct("=q")
OWNER = struct.Struct("=H")
MOST_MEMBERS = 1000
MEMBERS_AT = TOTAL.size
TOKENS_AT = MEMBERS_AT + MOST_MEMBERS * PROCESS.size
# struct flock: type, whence, start, length, process.
FLOCK = "hhqqi4x"

_OPEN: WeakSet["TokenFile"] = WeakSet()


def open_directory(path: Path) -> int:
    """Open a directory that only this user can use, and make it if it is missing; returns its descriptor.

    Raises:
        PoolConfigError: If it belongs to another user, is open to others, or is no directory.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        msg = f"the directory {str(path)!r} of a HostBudget cannot be used: {error.strerror}; pass another directory="
        raise PoolConfigError(msg) from None
    found = os.fstat(descriptor)
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(descriptor)
        msg = (
            f"the directory {str(path)!r} of a HostBudget must belong to this user, with no rights for others; "
            "run `chmod 700` on it, or pass another directory="
        )
        raise PoolConfigError(msg)
    return descriptor


class TokenFile:
    """One member's open file: takes tokens and gives them back, from any thread."""

    def __init__(self, directory: int, name: str, total: int) -> None:
        """Open the file, and make it if it is missing.

        Raises:
            OSError: If it cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file: int | None = os.open(f"{name}.tokens", flags, 0o600, dir_fd=directory)
        self._total = total
        self.number: int = 0  # of this member, once it has joined
        self.held: set[int] = set()
        self._next = 0  # where to look for a token first
        # Protects the file and what is held; a destructor may give a token back, whatever this thread is doing.
        self._lock = threading.RLock()
        _OPEN.add(self)

    def try_join(self, name: str) -> bool:
        """Become a member, with a number of its own; False if another process is joining right now.

        Raises:
            PoolConfigError: If other members have another total, or there are too many of them.
        """
        if not self._acquire(0, TOTAL.size):
            return False
        try:
            others = [(start - MEMBERS_AT) // PROCESS.size for start, _ in self._locked(MEMBERS_AT, TOKENS_AT)]
            file = self._descriptor()
            if not others:
                os.pwrite(file, TOTAL.pack(self._total), 0)
            (total,) = TOTAL.unpack(os.pread(file, TOTAL.size, 0))
            if total != self._total:
                pids = ", ".join(str(self._process(number)) for number in others[:5])
                msg = (
                    f"budget {name!r}: total={self._total} here, but total={total} in the processes {pids}. "
                    "Give all members the same total, or this one another name"
                )
                raise PoolConfigError(msg)
            for number in range(MOST_MEMBERS):
                if self._acquire(*_member(number)):
                    self.number = number
                    os.pwrite(file, PROCESS.pack(os.getpid()), _member(number)[0])
                    return True
        finally:
            self._release(0, TOTAL.size)
        msg = f"budget {name!r}: more than {MOST_MEMBERS} members"
        raise PoolConfigError(msg)

    def members(self) -> int:
        """Return how many members there are, with this one."""
        with self._lock:
            return 1 + len(list(self._locked(MEMBERS_AT, TOKENS_AT)))

    def take(self) -> bool:
        """Take a token; False if there is none."""
        with self._lock:
            for step in range(self._total):
                token = (self._next + step) % self._total
                if token not in self.held and self._acquire(*_token(token)):
                    os.pwrite(self._descriptor(), OWNER.pack(self.number), _token(token)[0])
                    self.held.add(token)
                    self._next = token + 1
                    return True
            return False

    def give_back(self) -> None:
        """Give one token back."""
        with self._lock:
            if self.held and self._file is not None:
                token = self.held.pop()
                self._next = token
                self._release(*_token(token))

    def counts(self) -> Counter[int]:
        """Return how many tokens each member holds, by its number."""
        with self._lock:
            found = Counter({self.number: len(self.held)})
            if self._file is None:
                return found
            end = TOKENS_AT + self._total * OWNER.size
            for start, stop in self._locked(TOKENS_AT, end):  # those of others
                first = start - (start - TOKENS_AT) % OWNER.size
                owners = os.pread(self._file, min(stop, end) - first, first)
                found.update(number for (number,) in OWNER.iter_unpack(owners))
            return found

    def process(self, number: int) -> int:
        """Return the process id of a member."""
        with self._lock:
            return os.getpid() if self._file is None else self._process(number)

    def is_open(self) -> bool:
        """Whether the member has not left."""
        return self._file is not None

    def close(self) -> None:
        """Give all tokens and the member's number back."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
                self.held.clear()

    def _descriptor(self) -> int:
        if self._file is None:
            raise OSError("the budget was left")
        return self._file

    def _process(self, number: int) -> int:
        (process,) = PROCESS.unpack(os.pread(self._descriptor(), PROCESS.size, _member(number)[0]))
        return int(process)

    # --- locks ------------------------------------------------------------------------------

    def _acquire(self, start: int, length: int) -> bool:
        try:
            fcntl.fcntl(self._descriptor(), fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, start, length))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _release(self, start: int, length: int) -> None:
        fcntl.fcntl(self._descriptor(), fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, start, length))

    def _locked(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges that other open files have locked, without locking any."""
        unknown = [(start, end)]
        while unknown:
            start, end = unknown.pop()
            asked = _flock(fcntl.F_WRLCK, start, end - start)
            kind, _, first, length, _ = struct.unpack(FLOCK, fcntl.fcntl(self._descriptor(), fcntl.F_OFD_GETLK, asked))
            if kind != fcntl.F_UNLCK:  # the kernel tells any one of the locks, not the first
                found = max(first, start), min(first + length, end)
                yield found
                unknown += [(low, high) for low, high in ((start, found[0]), (found[1], end)) if low < high]


def _flock(kind: int, start: int, length: int) -> bytes:
    return struct.pack(FLOCK, kind, os.SEEK_SET, start, length, 0)


def _member(number: int) -> tuple[int, int]:
    return MEMBERS_AT + number * PROCESS.size, PROCESS.size


def _token(number: int) -> tuple[int, int]:
    return TOKENS_AT + number * OWNER.size, OWNER.size


def _close_all() -> None:  # pragma: no cover - in a process of its own
    for file in tuple(_OPEN):
        file._lock = threading.RLock()  # noqa: SLF001 - another thread of the parent may have held the old one
        file.close()


os.register_at_fork(after_in_child=_close_all)

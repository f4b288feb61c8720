"""HostBudget: one total for all processes of this machine; needs Linux."""

import os
import socket
import struct
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import UNIXDatagramSocket

from ..budget import Member
from ..errors import PoolConfigError
from ..stats import BudgetStats
from ._common import check_arguments, warn_if_small

try:
    from fcntl import F_OFD_SETLK as _F_OFD_SETLK  # noqa: F401 - whether it exists

    from ._token_file import TokenFile, open_directory
except ImportError as _error:
    msg = "connectionpools_fastapi.budgets.host needs Linux, whose file locks end with their open file"
    raise ImportError(msg) from _error

# While a member needs a token it looks for one this often, and asks others after each ASK_EVERY looks; in seconds.
LOOK_EVERY = 0.02
ASK_EVERY = 3
# Its first questions are for unused resources only: a queue of a moment is not worth one that is used.
BUSY_AFTER = 4
# After so many questions it asks the next larger member: this one may be stopped, or its leases long.
PATIENCE = 5
# A member that has not looked for so long, in seconds, begins anew with its questions.
FORGET_AFTER = 0.5
# For so long, in seconds, a member that was asked by one with less takes no token: it would take what it gives.
YIELD_FOR = 0.2
# How long joining may take, in seconds: another process that joins does so in microseconds, unless it is stopped.
JOIN_WITHIN = 2.0

LONGEST_ADDRESS = 107
# What a member sends: how many tokens it holds, or UNUSED_ONLY, and how many it needs.
QUESTION = struct.Struct("=ii")
UNUSED_ONLY = -1


class HostBudget:
    """At most `total` resources in all processes of this user on this machine that name the same budget.

    The operating system counts: each token is a lock on a byte of a file. A process that ends, however it ends, gives
    its tokens back in that moment. Processes in containers share a budget only if they share `directory`.

    Example:
        ```python
        budget = HostBudget("orders-db", total=45)
        db = ConnectionPool(AsyncpgManager(dsn), limit=20, budget=budget, name="db")
        ```
    """

    def __init__(
        self, name: str, *, total: int, floor: int = 1, directory: str | os.PathLike[str] | None = None
    ) -> None:
        """Describe a budget; pools join it as they open.

        Args:
            name: What the budget is for; all processes write the same.
            total: The most resources that may exist at once, over all pools that join; all processes write the same.
            floor: How many resources each pool may keep, however much the others need them.
            directory: Where the file of tokens lies; only this user may have rights on it. By default a directory in
                the one for temporary files, which is made if it is missing.

        Raises:
            PoolConfigError: If a value cannot work.
        """
        check_arguments(name, total, floor)
        self.name = name
        self.total = total
        self.floor = floor
        default = Path(tempfile.gettempdir()) / f"connectionpools_fastapi-{os.getuid()}"
        self._directory = default if directory is None else Path(directory).absolute()
        if len(os.fsencode(self._directory)) + len(name) + len("/.000") > LONGEST_ADDRESS:
            msg = f"budget {name!r}: the path of its directory is too long for a socket; pass a shorter directory="
            raise PoolConfigError(msg)

    async def join(self, member: Member) -> "HostMembership":
        """Become a member; a pool calls this as it opens.

        Args:
            member: The pool.

        Returns:
            The pool's share of the tokens.

        Raises:
            PoolConfigError: If another process has another total, or the file cannot be used.
        """
        directory = open_directory(self._directory)
        try:
            file = TokenFile(directory, self.name, self.total)
        except OSError as error:
            msg = f"budget {self.name!r}: its file in {str(self._directory)!r} cannot be opened: {error.strerror}"
            raise PoolConfigError(msg) from None
        finally:
            os.close(directory)
        try:
            with anyio.move_on_after(JOIN_WITHIN):
                while not file.try_join(self.name):  # noqa: ASYNC110 - another process sets no event here
                    await anyio.sleep(LOOK_EVERY)
                membership = HostMembership(self, file, self._directory, member)
                await membership.listen()
                warn_if_small(self.name, self.total, self.floor, file.members())
                return membership
            msg = f"budget {self.name!r}: another process has been joining for {JOIN_WITHIN:g} s; see if it is stopped"
            raise PoolConfigError(msg)
        except BaseException:
            file.close()
            raise


class HostMembership:
    """A pool's share of a HostBudget."""

    def __init__(self, budget: HostBudget, file: TokenFile, directory: Path, member: Member) -> None:
        """Hold a file that has joined; `listen` completes it."""
        self._budget = budget
        self._file = file
        self._member = member
        self._addresses = f"{directory}/{budget.name}."  # a member's number completes its address
        self._looks = 0  # since tokens are needed, also over calls that were cancelled
        self._looked_at = 0.0
        self._waiting = 0  # tasks that need a token
        self._yields_until = 0.0
        self._turn = anyio.Lock()  # one task looks for tokens, and the others wait for their turn
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._questions: UNIXDatagramSocket

    async def listen(self) -> None:
        """Let the other members ask for tokens from now on."""
        self._questions = await anyio.create_unix_datagram_socket(local_path=self._address(), local_mode=0o600)
        self._member.spawn(self._answer)

    async def _answer(self) -> None:
        try:
            async for question, _ in self._questions:
                held, count = QUESTION.unpack(question)
                if held != UNUSED_ONLY and len(self._file.held) > held + 1:
                    self._yields_until = anyio.current_time() + YIELD_FOR
                self._member.give_way(None if held == UNUSED_ONLY else max(held + 1, self._budget.floor), count)
        except anyio.ClosedResourceError:  # by `leave`
            pass
        except BaseException:  # the loop has ended without the pool
            self._end()
            raise

    async def take(self) -> None:
        """Take a token, and wait for one for as long as it takes; see `Membership`."""
        self._waiting += 1
        try:
            await self._look()
        finally:
            self._waiting -= 1

    async def _look(self) -> None:
        async with self._turn:
            while anyio.current_time() < self._yields_until or not self._file.take():
                now = anyio.current_time()
                if now > self._looked_at + FORGET_AFTER:
                    self._looks = 0
                self._looked_at = now
                if self._looks % ASK_EVERY == 0:
                    self._ask_others(self._looks // ASK_EVERY)
                self._looks += 1
                await anyio.sleep(LOOK_EVERY)
            self._looks = min(self._looks, BUSY_AFTER * ASK_EVERY)

    def give_back(self) -> None:
        """Give a token back that was taken. From any thread."""
        self._file.give_back()

    def leave(self) -> None:
        """Give everything back, and end. From any thread."""
        self._end()
        with suppress(RuntimeError):  # the loop has ended, and the socket with it
            self._member.spawn(self._questions.aclose)

    def _end(self) -> None:
        # The address goes first: once the file is closed, another member may have this number.
        if self._file.is_open():
            Path(self._address()).unlink(missing_ok=True)
            self._file.close()
        self._sender.close()

    def stats(self) -> BudgetStats:
        """Return how many tokens are used, and by which processes. From any thread."""
        counts = self._file.counts()
        members: Counter[str] = Counter()
        for number, held in counts.items():
            members[f"process {self._file.process(number)}"] += held
        return BudgetStats(
            name=self._budget.name,
            total=self._budget.total,
            used=counts.total(),
            held=counts[self._file.number],
            members=dict(members),
        )

    def _ask_others(self, question: int) -> None:
        """Ask all others for an unused resource, and one that has more for half of that, even if it is in use."""
        own = self._file.number
        counts = self._file.counts()
        richer = [number for number, held in counts.most_common() if number != own and held > counts[own] + 1]
        turn = (question - BUSY_AFTER) // PATIENCE
        asked = richer[turn % len(richer)] if richer and turn >= 0 else None
        for number, held in counts.items():
            if number == asked:
                self._send(number, counts[own], min(self._waiting, (held - counts[own]) // 2))
            elif number != own and held > self._budget.floor:
                self._send(number, UNUSED_ONLY, 1)

    def _send(self, number: int, *question: int) -> None:
        # A member that has just ended hears nothing; one with many questions to answer needs no further one.
        with suppress(OSError):
            self._sender.sendto(QUESTION.pack(*question), self._address(number))

    def _address(self, number: int | None = None) -> str:
        return self._addresses + str(self._file.number if number is None else number)

"""Processes: a command of ours with its log, which never outlives its test."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

LONGEST_RUN = 60.0  # seconds, whatever goes wrong
LAST_WORDS = 30.0


class Process:
    """A module of Python's, run in a directory and a process group of its own."""

    def __init__(
        self,
        directory: Path,
        command: tuple[str, ...],
        environment: dict[str, str],
        *,
        stdout: int = subprocess.DEVNULL,
    ) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", *command],
            cwd=directory,
            env={"PYTHONPATH": os.pathsep.join([str(directory), *sys.path]), **environment},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._watchdog = threading.Timer(LONGEST_RUN, self.kill)
        self._watchdog.start()
        self._log: list[str] = []
        self._more = threading.Condition()
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            with self._more:
                self._log.append(line)
                self._more.notify_all()
        with self._more:
            self._log.append("")  # the end
            self._more.notify_all()

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return "".join(self._log)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition of the log holds, or the log is at its end."""
        with self._more:
            self._more.wait_for(lambda: condition() or "" in self._log)

    def wait_for_log(self, text: str) -> None:
        """Wait until it has logged something."""
        self.wait_until(lambda: text in self.log)
        assert text in self.log, self.log

    def wait(self) -> int:
        """Wait for the end of it and of all that it has started; returns its exit code."""
        code = self.process.wait()
        self._reader.join(LAST_WORDS)
        self._watchdog.cancel()
        assert not self._reader.is_alive(), "a process is left that may write to the log"
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for its end; returns the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """End the whole group at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

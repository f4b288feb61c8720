"""The tutorial, step by step: its programs are run, its requests made, and the answers compared."""

import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.processes import Process

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
UVICORN = ("uvicorn", "--port", "0", "main:app")
RUNNING = "Uvicorn running on "


def ask(url: str) -> None:
    """Make a request that may be cut off."""
    with suppress(httpx.HTTPError):
        httpx.get(url, timeout=30)


class Reader:
    """Does what a reader of the page does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = ExitStack()
        self._base = ""
        self._requests: list[threading.Thread] = []

    def write(self, program: str) -> None:
        """Save a program under the name in its first line; one for the server has it started again."""
        name = program.partition("\n")[0].removeprefix("# ")
        (self._folder / name).write_text(program)
        self.stop()
        if name == "main.py":
            server = self._server.enter_context(Process(self._folder, UVICORN, {}))
            server.wait_for_log(RUNNING)
            self._base = server.log.partition(RUNNING)[2].split()[0]

    def answer(self, command: str) -> str:
        """Return what a command prints."""
        words = shlex.split(command)
        if words[0] == "python":
            ended = subprocess.run(  # noqa: S603 - our own page
                [sys.executable, *words[1:]], cwd=self._folder, capture_output=True, text=True, check=False, timeout=60
            )
            assert ended.returncode == 0, ended.stdout
            return ended.stdout
        assert words[0] == "curl"
        options = {word for word in words[1:] if word.startswith("-")}
        assert options <= {"-s", "-si", "-X", "-E"}
        (address,) = (word for word in words if word.startswith("http"))
        url = address.replace("http://127.0.0.1:8000", self._base)
        if words[-1] == "&":
            self._requests.append(threading.Thread(target=ask, args=(url,)))
            self._requests[-1].start()
            while '"taken":1' not in httpx.get(f"{self._base}/pool/health").text:
                pass  # until it holds what it asks for
            return ""
        response = httpx.request("POST" if "-X" in options else "GET", url)
        text = response.text
        if "-si" in options:
            head = f"{response.http_version} {response.status_code} {response.reason_phrase}\n"
            text = head + "".join(f"{name}: {value}\n" for name, value in response.headers.items()) + text
        if "|" in words:
            assert words[-3:-1] == ["grep", "-E"]
            text = "\n".join(line for line in text.splitlines() if re.search(words[-1], line))
        return text

    def stop(self) -> None:
        """End the server, and requests that still wait for it."""
        self._server.close()
        for request in self._requests:
            request.join()
        self._requests.clear()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.stop()


def test_tutorial_programs_answer_as_the_page_says(reader: Reader) -> None:
    seen = 0
    for language, block in BLOCKS:
        if language == "python":
            reader.write(block)
        elif language == "console":
            for command, expected in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE):
                pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*")
                answer = reader.answer(command).strip()
                assert re.fullmatch(pattern, answer, flags=re.DOTALL), f"{command}\n{answer}"
                seen += 1
    assert seen >= 9

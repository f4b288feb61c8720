"""TokenFile: no token is ever held twice, and what a process held is free in the moment in which it ends."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from connectionpools_fastapi import PoolConfigError
from connectionpools_fastapi.budgets._token_file import TokenFile, open_directory


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = open_directory(tmp_path / "tokens")
    yield descriptor
    os.close(descriptor)


def joined(directory: int, total: int = 3, name: str = "db") -> TokenFile:
    file = TokenFile(directory, name, total)
    assert file.try_join(name)
    return file


def take_all(file: TokenFile) -> int:
    taken = 0
    while file.take():
        taken += 1
    return taken


def test_members_together_take_the_total_and_no_more(directory: int) -> None:
    files = [joined(directory, total=5) for _ in range(3)]
    assert [file.take() for file in files] == [True] * 3
    assert take_all(files[0]) == 2
    assert [file.take() for file in files] == [False] * 3
    files[1].give_back()
    assert files[2].take()
    assert dict(files[0].counts()) == {0: 3, 2: 2}


def test_budgets_of_other_names_are_apart(directory: int) -> None:
    assert take_all(joined(directory, total=2)) == 2
    assert take_all(joined(directory, total=7, name="other")) == 7


def test_tokens_and_number_of_a_closed_member_are_free(directory: int) -> None:
    first, second = joined(directory), joined(directory)
    take_all(first)
    first.close()
    first.close()
    assert take_all(second) == 3
    assert joined(directory).number == 0


def test_members_that_disagree_on_the_total_are_named(directory: int) -> None:
    first = joined(directory, total=3)
    with pytest.raises(PoolConfigError, match=f"total=4 here, but total=3 in the processes {os.getpid()}"):
        joined(directory, total=4)
    first.close()
    joined(directory, total=4)


def test_join_waits_while_another_process_joins(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = TokenFile(directory, "db", 3), TokenFile(directory, "db", 3)
    outcomes: list[bool] = []

    def meanwhile() -> int:
        monkeypatch.undo()
        outcomes.append(second.try_join("db"))
        return os.getpid()

    monkeypatch.setattr(os, "getpid", meanwhile)
    assert first.try_join("db")
    assert outcomes == [False]
    assert second.try_join("db")


def test_forked_child_keeps_no_token_alive(directory: int) -> None:
    parent, other = joined(directory), joined(directory)
    take_all(parent)
    (from_child, to_parent), (from_parent, to_child) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        os.write(to_parent, b"begun")
        os.read(from_parent, 1)
        os._exit(0)
    try:
        assert os.read(from_child, 5) == b"begun"
        parent.close()
        assert take_all(other) == 3
    finally:
        os.write(to_child, b"!")
        os.waitpid(child, 0)
        for end in (from_child, to_parent, from_parent, to_child):
            os.close(end)


@pytest.mark.parametrize("what", ["for others", "a link", "a file"])
def test_directory_that_others_could_use_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "tokens"
    if what == "for others":
        path.mkdir()
        path.chmod(0o750)
    elif what == "a link":
        (tmp_path / "real").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "real")
    else:
        path.touch()
    with pytest.raises(PoolConfigError, match="pass another directory="):
        open_directory(path)


def test_link_in_place_of_the_file_is_not_followed(tmp_path: Path, directory: int) -> None:
    (tmp_path / "tokens" / "db.tokens").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        TokenFile(directory, "db", 3)


class TokenFileMachine(RuleBasedStateMachine):
    """Members come, take, give back, and are killed in any order: the tokens add up at each moment."""

    members = Bundle("members")
    TOTAL = 4

    def __init__(self) -> None:
        super().__init__()
        import tempfile  # noqa: PLC0415

        self.place = tempfile.TemporaryDirectory()
        self.directory = open_directory(Path(self.place.name) / "tokens")
        self.held: dict[TokenFile, int] = {}

    def teardown(self) -> None:
        for file in self.held:
            file.close()
        os.close(self.directory)
        self.place.cleanup()

    @rule(target=members)
    def join(self) -> TokenFile:
        file = joined(self.directory, self.TOTAL)
        self.held[file] = 0
        return file

    @rule(file=members)
    def take(self, file: TokenFile) -> None:
        expected = sum(self.held.values()) < self.TOTAL
        assert file.take() == expected
        self.held[file] += expected

    @rule(file=members)
    def give_back(self, file: TokenFile) -> None:
        file.give_back()
        self.held[file] = max(0, self.held[file] - 1)

    @rule(file=consumes(members))
    def kill(self, file: TokenFile) -> None:
        file.close()
        del self.held[file]

    @invariant()
    def counts_are_true_for_each_member(self) -> None:
        expected = {file.number: held for file, held in self.held.items() if held}
        assert len({file.number for file in self.held}) == len(self.held)
        for file in self.held:
            assert {number: held for number, held in file.counts().items() if held} == expected


TokenFileMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
test_tokens_add_up_in_any_order = TokenFileMachine.TestCase

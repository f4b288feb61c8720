"""The two programs of docs/from-get-db.md, word for word, with SQLModel on PostgreSQL and SQLite."""

import difflib
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel.main import default_registry

from connectionpools_fastapi import ConnectionPool
from tests.sqlalchemy_pools import of_postgres
from tests.support import check

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "from-get-db.md").read_text()
BEFORE, AFTER = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
MOST_LINES = 10


@pytest.fixture(params=["psycopg", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'books.db'}"
    found = of_postgres("psycopg", request.getfixturevalue("postgres_url"))
    return found.render_as_string(hide_password=False)


@pytest.fixture(params=[BEFORE, AFTER], ids=["before", "after"])
def program(request: pytest.FixtureRequest, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run the program as importing it does, with tables of its own."""
    monkeypatch.setenv("DATABASE_URL", url)
    module = ModuleType("books")
    monkeypatch.setitem(sys.modules, "books", module)
    exec(compile(request.param, "<from-get-db>", "exec"), module.__dict__)  # noqa: S102 - our own page
    metadata = module.__dict__["SQLModel"].metadata
    engine = module.__dict__["engine"]
    metadata.drop_all(engine)
    metadata.create_all(engine)
    yield module
    metadata.drop_all(engine)
    engine.dispose()
    metadata.clear()
    default_registry.dispose()


def test_endpoints_of_both_programs_answer_alike(program: Any) -> None:
    with TestClient(program.app) as client:
        assert client.post("/books", json={"title": "Emma"}).json() == {"id": 1, "title": "Emma"}
        assert client.get("/books").json() == [{"id": 1, "title": "Emma"}]
        assert client.get("/books/1").json()["title"] == "Emma"
        assert client.get("/books/2").status_code == 404


@pytest.mark.parametrize("program", [AFTER], indirect=True, ids=["after"])
def test_session_is_sqlmodels_and_on_the_endpoints_thread(program: Any) -> None:
    """It also commits by itself."""
    pool: ConnectionPool[Any] = program.db
    threads: list[bool] = []

    @program.app.post("/add")  # type: ignore[untyped-decorator] # the page is not checked
    def add(session: program.SessionDep) -> str:
        session.add(program.Book(title="Persuasion"))
        threads.append(threading.current_thread() is not threading.main_thread())
        return type(session).__module__

    with TestClient(program.app) as client:
        assert client.post("/add").json().startswith("sqlmodel")
        assert [book["title"] for book in client.get("/books").json()] == ["Persuasion"]
        assert threads == [True]
    check(pool)


def test_move_takes_ten_lines() -> None:
    lines = [line for line in difflib.ndiff(BEFORE.splitlines(), AFTER.splitlines()) if line[2:].strip()]
    assert sum(line.startswith("+ ") for line in lines) <= MOST_LINES
    assert sum(line.startswith("- ") for line in lines) <= MOST_LINES

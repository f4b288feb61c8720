"""The programs of docs/guide/tenants.md, word for word, on a PostgreSQL with its tables."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import psycopg
import pytest
from fastapi.testclient import TestClient

from tests.support import check
from tests.wheel_servers import PASSWORD

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "tenants.md").read_text()
(TABLES,) = re.findall(r"^```text\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
ANNA, BERT = {"X-API-Key": "key-of-anna"}, {"X-API-Key": "key-of-bert"}


@pytest.fixture
def app_url(postgres_url: str) -> Iterator[str]:
    """Yield an address of the role `app`, in a database of its own."""
    server = urlsplit(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE test_tenants")
        connection.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'".encode())
        with psycopg.connect(server._replace(path="/test_tenants").geturl()) as inner:
            inner.execute(TABLES.encode())
        yield f"postgresql://app:{PASSWORD}@{server.hostname}:{server.port}/test_tenants"
        connection.execute("DROP DATABASE test_tenants WITH (FORCE)")
        connection.execute("DROP ROLE app")


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program_of_the_page_keeps_tenants_apart(app_url: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", app_url)
    module = ModuleType("page")
    exec(compile(PROGRAMS[number], f"<tenants.md, program {number}>", "exec"), module.__dict__)  # noqa: S102
    with TestClient(module.app) as client:
        assert client.post("/notes", params={"body": "of anna"}, headers=ANNA).status_code == 200
        assert client.get("/notes", headers=ANNA).json() == ["of anna"]
        assert client.get("/notes", headers=BERT).json() == []
        assert client.get("/notes", headers={"X-API-Key": "none"}).status_code == 401
        assert not any(module.db.stats().discards.values())
        check(module.db)

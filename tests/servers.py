"""The servers of the tests: a real one for each session, or the one that an environment variable names."""

import os
from collections.abc import Iterator

import pytest

from example_app.servers import postgres, redis


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Yield the address of a PostgreSQL and its superuser: POSTGRES_URL, or one made for this session.

    Whoever sets POSTGRES_URL gives a server that asks for passwords.
    """
    url = os.environ.get("POSTGRES_URL")
    if url:
        yield url
        return
    with postgres() as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Yield the address of a Redis: REDIS_URL, or one made for this session.

    Whoever sets REDIS_URL gives a server that asks for no password. The tests write keys and users
    whose names begin with `test:`, into the databases 0 and 1.
    """
    url = os.environ.get("REDIS_URL")
    if url:
        yield url
        return
    with redis() as server:
        yield server.url

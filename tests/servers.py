"""The servers of the tests: a real one for each session, or the one that an environment variable names."""

import os
from collections.abc import Iterator

import pytest

from tests.certificates import write_certificate
from tests.mariadb_servers import MariadbServer, mariadb
from tests.rabbitmq_servers import rabbitmq
from tests.wheel_servers import postgres, redis


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Yield the address of a PostgreSQL and its superuser: POSTGRES_URL, or one made for this session.

    POSTGRES_URL, if set, names a server that asks for passwords.
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

    REDIS_URL, if set, names a server that asks for no password. The tests write keys and users
    whose names begin with `test:`, into the databases 0 and 1.
    """
    url = os.environ.get("REDIS_URL")
    if url:
        yield url
        return
    with redis() as server:
        yield server.url


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    """Yield the address of a RabbitMQ: RABBITMQ_URL, or one made for this session.

    RABBITMQ_URL, if set, names a server whose user may do all. The tests make queues and exchanges
    whose names begin with `test-`.
    """
    url = os.environ.get("RABBITMQ_URL")
    if url:
        yield url
        return
    with rabbitmq() as server:
        yield server.url


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariadbServer]:
    """Yield a MariaDB made for this session, which can speak TLS; for tests that leave it as it is."""
    certificate = write_certificate(tmp_path_factory.mktemp("mariadb") / "both.pem", "127.0.0.1")
    with mariadb(f"--ssl-cert={certificate}", f"--ssl-key={certificate}") as server:
        server.certificate = certificate
        yield server

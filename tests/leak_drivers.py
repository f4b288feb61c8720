"""How the drivers are spoken to by the questions of the leak matrix, all in the same words."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.util import greenlet_spawn


async def no_commit(_: Any) -> None:
    """Do nothing: the driver begins no transaction by itself."""


@dataclass(frozen=True)
class Driver:
    """How one driver, or SQLAlchemy upon it, is spoken to: all callables take a connection.

    `ask` executes a statement and returns the first value of its first row. `made` makes something from the connection
    and returns how to use it.
    """

    ask: Callable[[Any, Any], Awaitable[Any]]
    made: Callable[[Any], Awaitable[Callable[[], Awaitable[Any]]]]
    commit: Callable[[Any], Awaitable[Any]] = no_commit
    begins: bool = True  # whether it begins a transaction with the first statement


def first(row: Any) -> Any:
    return None if row is None else row[0]


async def ask_psycopg(connection: Any, query: str) -> Any:
    cursor = await connection.execute(query)
    return first(await cursor.fetchone()) if cursor.description else None


async def made_by_psycopg(connection: Any) -> Callable[[], Awaitable[Any]]:
    cursor = connection.cursor()
    await cursor.execute("SELECT 1")
    return lambda: cursor.execute("SELECT 2")


def ask_in_thread(connection: Any, query: str) -> Any:
    cursor = connection.execute(query)
    return first(cursor.fetchone()) if cursor.description else None


async def made_in_thread(connection: Any) -> Callable[[], Awaitable[Any]]:
    cursor = await asyncio.to_thread(connection.cursor)
    await asyncio.to_thread(cursor.execute, "SELECT 1")
    return lambda: asyncio.to_thread(cursor.execute, "SELECT 2")


async def made_by_asyncpg(connection: Any) -> Callable[[], Awaitable[Any]]:
    statement = await connection.prepare("SELECT 1")
    result: Callable[[], Awaitable[Any]] = statement.fetchval
    return result


async def ask_sqlalchemy(connection: Any, query: str) -> Any:
    result = await connection.exec_driver_sql(query)
    return result.scalar() if result.returns_rows else None


async def made_by_sqlalchemy(connection: Any) -> Callable[[], Awaitable[Any]]:
    driven = await connection.get_raw_connection()  # below SQLAlchemy
    cursor = await greenlet_spawn(driven.cursor)

    async def use() -> None:
        await greenlet_spawn(cursor.execute, "SELECT 1")

    await use()
    return use


def ask_sqlalchemy_in_thread(connection: Any, query: str) -> Any:
    result = connection.exec_driver_sql(query)
    return result.scalar() if result.returns_rows else None


async def made_by_sqlalchemy_in_thread(connection: Any) -> Callable[[], Awaitable[Any]]:
    cursor = connection.connection.cursor()  # of the driver, below SQLAlchemy
    await asyncio.to_thread(cursor.execute, "SELECT 1")
    return lambda: asyncio.to_thread(cursor.execute, "SELECT 2")


async def ask_mysql(connection: Any, query: str) -> Any:
    async with connection.cursor() as cursor:
        await cursor.execute(query)
        return first(await cursor.fetchone())


async def made_by_mysql(connection: Any) -> Callable[[], Awaitable[Any]]:
    cursor = await connection.cursor()
    await cursor.execute("SELECT 1")
    await cursor.fetchall()
    return lambda: cursor.execute("SELECT 2")


def committed_in_thread(connection: Any) -> Awaitable[Any]:
    return asyncio.to_thread(connection.commit)


ASYNCPG = Driver(lambda connection, query: connection.fetchval(query), made_by_asyncpg, begins=False)
PSYCOPG = Driver(ask_psycopg, made_by_psycopg, lambda connection: connection.commit())
SYNC_PSYCOPG = Driver(
    lambda connection, query: asyncio.to_thread(ask_in_thread, connection, query), made_in_thread, committed_in_thread
)
SQLALCHEMY = Driver(ask_sqlalchemy, made_by_sqlalchemy, lambda connection: connection.commit())
SYNC_SQLALCHEMY = Driver(
    lambda connection, query: asyncio.to_thread(ask_sqlalchemy_in_thread, connection, query),
    made_by_sqlalchemy_in_thread,
    committed_in_thread,
)
MYSQL = Driver(ask_mysql, made_by_mysql, lambda connection: connection.commit())

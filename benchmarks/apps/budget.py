"""One worker of a service with a budget: a query of 50 ms at /, the pool's stats at /stats.

python -m benchmarks.apps.budget <name> <port>, and the environment: DSN, LIMIT, TOTAL, and ENGINE.
"""

import os
import sys
from dataclasses import asdict
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI

from connectionpools_fastapi import ConnectionPool, Leased, install_pools
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.budget import Budget
from connectionpools_fastapi.budgets.host import HostBudget
from connectionpools_fastapi.budgets.redis import RedisBudget

QUERY_TAKES = 0.05  # seconds


def budget_of(engine: str, total: int) -> Budget | None:
    """Return the budget that a word tells: "none", a directory, or the URL of a Redis."""
    if engine == "none":
        return None
    if engine.startswith("redis:"):
        return RedisBudget(engine, "orders-db", total=total, ttl=float(os.environ["TTL"]))
    return HostBudget("orders-db", total=total, directory=engine)


def app_of(name: str) -> FastAPI:
    environment = os.environ
    pool = ConnectionPool(
        AsyncpgManager(environment["DSN"], server_settings={"application_name": name}),
        limit=int(environment["LIMIT"]),
        timeout=5,
        budget=budget_of(environment["ENGINE"], int(environment["TOTAL"])),
        name="db",
    )
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/")
    async def answer(connection: Annotated[Any, Leased(pool)]) -> None:
        await connection.execute(f"SELECT pg_sleep({QUERY_TAKES})")

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        return asdict(pool.stats())

    return app


if __name__ == "__main__":
    uvicorn.run(app_of(sys.argv[1]), port=int(sys.argv[2]), log_level="warning", timeout_keep_alive=60)

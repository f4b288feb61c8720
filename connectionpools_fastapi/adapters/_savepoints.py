"""The statements of a sandbox: a transaction for all its leases, in which each lease has a savepoint; needs no driver.

The savepoint `pool_lease` stands wherever all earlier work is committed, as the leases see it. A commit sets it anew,
a rollback goes back to it, and a begin sends nothing.
"""

import re
from typing import Literal

from ..errors import PoolConfigError, own

Control = Literal["begin", "commit", "rollback"]

KEEP = "RELEASE SAVEPOINT pool_lease; SAVEPOINT pool_lease;"
UNDO = "ROLLBACK TO SAVEPOINT pool_lease;"

CONTROLS: dict[str, Control] = {
    "ABORT": "rollback",
    "BEGIN": "begin",
    "COMMIT": "commit",
    "END": "commit",
    "ROLLBACK": "rollback",
    "START": "begin",
}
OTHER_CONTROLS = frozenset({"PREPARE", "XA"})
# After one of these first words, the second one tells that it is no end of the lease's transaction.
TO_SAVEPOINT = re.compile(r"ROLLBACK\s+(?:WORK\s+|TRANSACTION\s+)?TO\b", re.IGNORECASE)
NOT_HERE = re.compile(
    r"(?:COMMIT|ROLLBACK)\s+(?:WORK\s+)?(?:PREPARED|AND\s+CHAIN)\b|PREPARE\s+TRANSACTION\b|XA\b|"
    r"START\s+(?!TRANSACTION)\w|BEGIN\s+NOT\b",
    re.IGNORECASE,
)
# Text in which no statement begins: strings, quoted names, comments, bodies of functions.
QUOTED = re.compile(
    r"'(?:[^'\\]|''|\\.)*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|--[^\n]*|/\*.*?\*/|(\$\w*\$).*?\1",
    re.DOTALL,
)
FIRST_WORD = re.compile(r"(?:\s|;|--[^\n]*\n|/\*.*?\*/|\()*([A-Za-z]+)", re.DOTALL)


def first_word(sql: str) -> str:
    """Return the first word of a statement, in capitals; empty if there is none."""
    found = FIRST_WORD.match(sql)
    return found[1].upper() if found else ""


def statements(sql: str) -> list[str]:
    """Return the statements of a script, without what is quoted in them."""
    if ";" not in sql.rstrip("; \t\n"):
        return [sql]
    return [part for part in QUOTED.sub(" ", sql).split(";") if part.strip()]


def control_of(sql: str) -> Control | None:
    """Say which end of a transaction a statement, or the only one of a script, is.

    Raises:
        PoolConfigError: If the sandbox cannot do what it says.
    """
    parts = statements(sql)
    found: list[Control | None] = [control_of_one(part) for part in parts]
    if len(parts) > 1 and any(found):
        raise refusal("a script that begins or ends a transaction", "send these statements one by one")
    return found[0] if found else None


def control_of_one(statement: str) -> Control | None:
    """Say which end of a transaction a single statement is; raises as `control_of`."""
    begins = FIRST_WORD.match(statement)
    if begins is None or ((word := begins[1].upper()) not in CONTROLS and word not in OTHER_CONTROLS):
        return None
    text = statement[begins.start(1) :]
    if NOT_HERE.match(text):
        raise refusal(f"this kind of {word}", "it reaches beyond the transaction of a lease")
    return None if TO_SAVEPOINT.match(text) else CONTROLS.get(word)


def refusal(what: str, why: str) -> PoolConfigError:
    """Make the error for a statement that a sandbox cannot run; nothing of it is sent."""
    return own(PoolConfigError(f"a sandbox cannot run {what}: {why}. Nothing was sent, and nothing is committed"))


def lost(name: str) -> PoolConfigError:
    """Make the error for a sandbox whose transaction has ended before it."""
    return own(
        PoolConfigError(
            f"{name}: the transaction of the sandbox is gone: its connection was lost, or a statement has ended it, "
            "as a procedure that commits. No further lease is possible in this sandbox"
        )
    )

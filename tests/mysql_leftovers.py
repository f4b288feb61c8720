"""What a lease may leave on a session of MySQL or MariaDB, beside a table `kept (n int)` and one `other`."""

from dataclasses import dataclass


@dataclass
class Leftover:
    leave: str
    # A query whose value is true if it is still there.
    remains: str
    # Whether it is of the session, and not only of a transaction.
    of_session: bool = True
    # Or the number of the error by which the server refuses the query then.
    refusal: int = 0


LEFTOVERS = {
    "a transaction": Leftover("BEGIN", "SELECT @@in_transaction", of_session=False),
    "a write": Leftover("INSERT INTO kept VALUES (1)", "SELECT count(*) > 0 FROM kept", of_session=False),
    "a locked row": Leftover("SELECT * FROM kept FOR UPDATE", "SELECT @@in_transaction", of_session=False),
    "a variable": Leftover("SET @mine = 1", "SELECT @mine IS NOT NULL"),
    "the mode": Leftover("SET sql_mode = 'ANSI'", "SELECT @@sql_mode LIKE '%ANSI%'"),
    "a setting": Leftover("SET time_zone = '+05:00'", "SELECT @@time_zone = '+05:00'"),
    "the isolation": Leftover(
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SELECT count(*) > 0 FROM information_schema.session_variables WHERE variable_value = 'SERIALIZABLE'",
    ),
    "read only": Leftover("SET SESSION TRANSACTION READ ONLY", "SELECT @@tx_read_only"),
    "autocommit": Leftover("SET autocommit = 1", "SELECT @@autocommit"),
    "the charset": Leftover("SET NAMES latin1", "SELECT @@character_set_client = 'latin1'"),
    "the database": Leftover("USE information_schema", "SELECT database() = 'information_schema'"),
    "a temporary table": Leftover("CREATE TEMPORARY TABLE kept (other int)", "SELECT count(n) FROM kept", refusal=1054),
    "a lock": Leftover("SELECT get_lock('mine', 1)", "SELECT is_used_lock('mine') IS NOT NULL"),
    "locked tables": Leftover("LOCK TABLES kept READ", "SELECT count(*) FROM other", refusal=1100),
    "a prepared statement": Leftover("PREPARE mine FROM 'SELECT 1'", "EXECUTE mine"),
    "the last number": Leftover("SELECT last_insert_id(7)", "SELECT last_insert_id() = 7"),
}
NO_STATEMENT = 1243

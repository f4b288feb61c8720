"""What PostgreSQL and libpq say of mistakes that waiting does not mend; needs no driver."""

import re

# libpq keeps the code of an error at connecting to itself, so its words are all there is. A server that speaks
# another language than English is not understood, and its refusal is told as any other failure.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects|"
    r'role ".*" does not exist|is not permitted to log in|permission denied for database'
)
_UNKNOWN_DATABASE = re.compile(r'database ".*" does not exist|no such database')
_BAD_OPTION = re.compile(
    r"invalid (?:integer |\w+ )?value|invalid port number|unrecognized configuration parameter|"
    r"invalid value for parameter|could not match \d+ "
)

# As the codes of the server's own errors are to be told (SQLSTATE).
_CODES = {"28P01": _REFUSED, "28000": _REFUSED, "3D000": _UNKNOWN_DATABASE, "42704": _BAD_OPTION, "22023": _BAD_OPTION}
_ADVICE = {
    _REFUSED: "the server refuses this user: check user and password, and pg_hba.conf on the server",
    _UNKNOWN_DATABASE: "the server has no such database: check the name at the end of the address, or create it",
    _BAD_OPTION: "an option has a value that is not understood: check the port and what follows the ? of the address",
}


def advice(said: str, code: str | None = None) -> str | None:
    """Say what to check after a connection was refused, if it is a mistake that waiting does not mend.

    Args:
        said: The text of the error; nothing of it is repeated.
        code: Its SQLSTATE, where there is one.

    Returns:
        What is wrong and what to check; None if trying again may help.
    """
    if code is not None:
        kind = _CODES.get(code)
        return _ADVICE[kind] if kind is not None else None
    return next((text for kind, text in _ADVICE.items() if kind.search(said)), None)

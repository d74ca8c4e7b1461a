"""What can go wrong with a server, as codes; and its own errors turned into them."""

from __future__ import annotations

from typing import Any

from dataflare_sdk import CODES, DataflareError, code

UNREACHABLE = code("mysql.unreachable", 4, "The server cannot be reached.", "Check host and port in `url`, and that the server runs.")
LOST = code("mysql.connection-lost", 4, "The connection to the server was lost.", "Run again; the run resumes.")
DENIED = code("mysql.denied", 4, "The server refuses the user or the password.", "Check user and password in `url`.")
NO_DATABASE = code("mysql.no-database", 4, "The database does not exist.", "Check the database in `url`, or create it.")
NO_TABLE = code("mysql.no-table", 4, "The table does not exist.", "Check `table`.")
PERMISSION = code("mysql.permission", 4, "The user lacks a right.", "Let an administrator grant it.")
BAD_QUERY = code("mysql.bad-query", 3, "The server refuses the query.", "Mend the query; it is the server's dialect.")
BUSY = code("mysql.busy", 4, "Somebody else holds a lock, or the server is too busy.", "The run tries again by itself.")
SERVER = code("mysql.failed", 4, "The server failed.", "See the server's message.")
BAD_URL = code("mysql.bad-url", 3, "The URL is none of MySQL.", "Write mysql://user:password@host:3306/database.")
NO_DRIVER = code("mysql.no-driver", 4, "The library PyMySQL is not installed.", "pip install 'dataflare[mysql]'")
REFUSED = code("data.refused", 1, "The database refuses a row.", "Mend the row, or the constraint of the table.")

_MOMENTARY = {1040, 1129, 1203, 1205, 1213, 1226, 3572}
_LOST = {0, 1053, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 2006, 2013, 2055, 4166}
_DENIED = {1044: PERMISSION, 1045: DENIED, 1698: DENIED, 1142: PERMISSION, 1143: PERMISSION, 1227: PERMISSION, 1370: PERMISSION}
_FULL = {1021, 1114, 1041}
_QUERY = {1064, 1054, 1052, 1247, 1305, 1327, 1060, 1066, 1111, 1140, 1222, 1241, 1242, 1582, 1630}
_ROW = {
    1022, 1048, 1062, 1216, 1217, 1264, 1265, 1292, 1364, 1366, 1406, 1411, 1416, 1451, 1452, 1526, 1690, 3140, 3819, 4025, 4078,
}  # fmt: skip


def driver() -> Any:
    """Return PyMySQL.

    Raises:
        DataflareError: `mysql.no-driver`.
    """
    try:
        import pymysql
    except ImportError as error:
        raise NO_DRIVER.error("MySQL needs PyMySQL, which is not installed") from error
    return pymysql


def number(error: BaseException) -> int:
    """Return the server's error number, 0 when there is none."""
    found = error.args[0] if error.args else 0
    return found if isinstance(found, int) else 0


def explained(error: BaseException, place: str, path: str | None = None) -> DataflareError:
    """Return what an error of the driver or of the socket means.

    Args:
        error: the error.
        place: server and database, without the password.
        path: the key of the `with:` block it is about.
    """
    if isinstance(error, DataflareError):
        return error
    which, text = number(error), _text(error)
    if isinstance(error, RuntimeError) and "cryptography" in text:
        return NO_DRIVER.error(f"{place}: the user's authentication needs the package 'cryptography'")
    if which in (2003, 2002, 2005):
        return UNREACHABLE.retriable(f"{place} cannot be reached: {text}", path=path or "url")
    if which in _DENIED:
        return _DENIED[which].error(f"{place}: {text}", path=path or "url")
    if which == 1049:
        return NO_DATABASE.error(f"{place}: {text}", path="url")
    if which in (1146, 1051):
        return NO_TABLE.error(f"{place}: {text}", path=path or "table")
    if which in _QUERY:
        return BAD_QUERY.error(f"{place}: {text}", path=path or "query")
    return _of_the_server(error, which, f"{place}: {text}")


def _of_the_server(error: BaseException, which: int, message: str) -> DataflareError:
    if which in _MOMENTARY:
        return BUSY.retriable(message)
    if which in _FULL or "No space left" in message or "errno: 28" in message:
        return CODES["world.disk-full"].error(message)
    if which in _LOST or isinstance(error, (OSError, EOFError, AttributeError)):
        return LOST.retriable(message)
    if which in _ROW:
        return REFUSED.error(message)
    return SERVER.error(message)


def refuses_row(error: BaseException) -> bool:
    """Whether the server refused values, not the statement."""
    return number(error) in _ROW


def _text(error: BaseException) -> str:
    parts = [str(a) for a in error.args if not isinstance(a, int)]
    return ": ".join(p for p in parts if p) or type(error).__name__

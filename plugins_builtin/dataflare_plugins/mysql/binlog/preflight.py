"""Whether the server's log can be read at all; each refusal says what to set."""

from __future__ import annotations

from dataflare_plugins.mysql.binlog.position import NO_LOG, identity
from dataflare_plugins.mysql.connection import Session
from dataflare_plugins.mysql.errors import PERMISSION
from dataflare_sdk import code

NOT_ROW = code(
    "mysql.binlog-format", 4, "The binary log holds statements, not rows.", "Set binlog_format=ROW on the server and reconnect its writers."
)
_RIGHTS = ("REPLICATION SLAVE", "ALL PRIVILEGES", "REPLICATION REPLICA")


def preflight(session: Session) -> str:
    """Check the server's settings and the user's rights, and return the server's identity.

    Raises:
        DataflareError: `mysql.no-binlog`, `mysql.binlog-format`, `mysql.permission`.
    """
    if session.variable("log_bin").upper() not in ("ON", "1"):
        raise NO_LOG.error(f"{session.url} writes no binary log (log_bin is off)", path="url")
    if session.variable("binlog_format").upper() != "ROW":
        raise NOT_ROW.error(f"{session.url} has binlog_format={session.variable('binlog_format')}", path="url")
    grants = " ".join(str(r[0]).upper() for r in session.query("SHOW GRANTS"))
    if not any(right in grants for right in _RIGHTS):
        fix = f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '{session.url.user}'; MariaDB: also BINLOG MONITOR."
        raise PERMISSION.error(f"{session.url}: '{session.url.user}' may not read the binary log", fix=fix, path="url")
    return identity(session)

"""The address of a request: a template with columns in its path and query, never in what names the server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import pyarrow as pa

from dataflare_sdk import CODES, code, duck
from dataflare_sdk.schema import literal, quote

BAD_URL = code("http.bad-url", 3, "The address of a request cannot be made.", "Give an http(s) address, with columns in its path only.")
_PLACE = re.compile(r"\{([^{}]+)\}")


class Target:
    """A parsed template.

    Args:
        text: the template.

    Attributes:
        host, port, tls: the server.
        columns: columns in the template.

    Raises:
        DataflareError: `http.bad-url`.
    """

    def __init__(self, text: str) -> None:
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError as error:
            raise BAD_URL.error(f"the address cannot be read: {error}", path="url") from None
        if url.scheme not in ("http", "https") or not url.hostname:
            raise BAD_URL.error("an address begins with http:// or https://", path="url")
        if url.username is not None or url.password is not None:
            raise BAD_URL.error("an address holds no user", fix="Put credentials into `headers`.", path="url")
        if "{" in url.netloc or "}" in url.netloc:
            raise BAD_URL.error("what names the server is the same for all rows", path="url")
        self.host = url.hostname
        self.tls = url.scheme == "https"
        self.port = port or (443 if self.tls else 80)
        self._path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        if not self._path.isascii() or " " in self._path:
            raise BAD_URL.error("an address is ASCII without spaces; other characters are written %XX", path="url")
        self.columns = tuple(dict.fromkeys(_PLACE.findall(self._path)))

    @property
    def origin(self) -> str:
        """Return the server, for people and for the commit scope."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def missing(self, schema: pa.Schema) -> Sequence[str]:
        """Return columns of the template that the rows have not."""
        return [c for c in self.columns if c not in schema.names]

    def paths(self, rows: pa.RecordBatch) -> list[str]:
        """Return the path of every row; values are written as they are in an address."""
        if not self.columns:
            return [self._path] * rows.num_rows
        parts: list[str] = []
        at = 0
        for found in _PLACE.finditer(self._path):
            parts += [literal(self._path[at : found.start()]), f"url_encode(CAST({quote(found[1])} AS VARCHAR))"]
            at = found.end()
        parts.append(literal(self._path[at:]))
        with duck.session() as connection:
            connection.register("rows_to_send", rows)
            try:
                made = connection.sql(f"SELECT {' || '.join(parts)} AS path FROM rows_to_send").to_arrow_table()
            except Exception as error:
                raise duck.judged(error, CODES["data.bad-row"], f"an address cannot be made of the rows: {error}") from error
            finally:
                connection.unregister("rows_to_send")
        paths: list[str] = made.column(0).to_pylist()
        return paths

"""The address of a request: a template with columns in its path and query, never in what names the server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

import pyarrow as pa

from dataflare_sdk import CODES, code, duck, web
from dataflare_sdk.schema import literal, quote

BAD_URL = code("http.bad-url", 3, "The address of a request cannot be made.", "Give an http(s) address, with columns in its path only.")
_PLACE = re.compile(r"\{([^{}]+)\}")


class Target:
    """A parsed template.

    Args:
        text: the template.

    Attributes:
        tls: whether the server is spoken to in secret.
        columns: columns in the template.

    Raises:
        DataflareError: `http.bad-url`.
    """

    def __init__(self, text: str) -> None:
        try:
            url = web.address(_PLACE.sub("x", text))
        except ValueError as error:
            raise BAD_URL.error(str(error), fix="Credentials go into `headers`.", path="url") from None
        whole = urlsplit(text)
        if "{" in whole.netloc or "}" in whole.netloc:
            raise BAD_URL.error("what names the server is the same for all rows", path="url")
        self._server = url._replace(path="", query="", fragment="")
        self.tls = url.scheme == "https"
        self._path = web.target(whole)
        self.columns = tuple(dict.fromkeys(_PLACE.findall(self._path)))

    @property
    def origin(self) -> str:
        """Return the server, for people and for the commit scope."""
        scheme, host, port = web.origin(self._server)
        return f"{scheme}://{host}:{port}"

    def url(self, path: str = "/") -> SplitResult:
        """Return the address of a path that `paths` gave."""
        place, _, query = path.partition("?")
        return self._server._replace(path=place, query=query)

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

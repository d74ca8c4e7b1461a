"""A webhook as a source: what is posted is kept in a log on the disk, and read from there."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflare_plugins.webhook.options import IdempotencyConfig, WebhookConfig
from dataflare_sdk import CODES, ExtractSpec, Offset, Partition, Reader, code
from dataflare_sdk.inflow.reader import MessageReader
from dataflare_sdk.inflow.source import MessageSource

if TYPE_CHECKING:
    from dataflare_plugins.webhook.keys import KeyStore
    from dataflare_plugins.webhook.server import Server
    from dataflare_sdk.inflow.durable_log import DurableLog
    from dataflare_sdk.inflow.messages import Messages

NO_COLUMNS = code("webhook.no-columns", 3, "The columns of what will be posted are not known.", "Give `columns`.")
UNGUARDED = code(
    "webhook.unguarded",
    3,
    "Anybody who reaches the address could send rows.",
    "Give `bearer` or `signature`, or say `unguarded: true`.",
)
CANNOT_LISTEN = code("webhook.cannot-listen", 4, "The address to listen at cannot be had.", "Take another port, or end who has it.")
BAD_TLS = code("webhook.bad-tls", 4, "Certificate or key cannot be read.", "Give a PEM certificate and the key that belongs to it.")
MISSING = code("webhook.missing-extra", 4, "The library that reads HTTP is not installed.", "Install it: pip install 'dataflare[webhook]'.")
SCAN_ROWS = 65_536


class WebhookSource(MessageSource[WebhookConfig]):
    """Takes rows by HTTP. A request is answered when its rows are on the disk; the same rows come again from there."""

    Config = WebhookConfig

    def __init__(self, config: WebhookConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if config.format == "json" and config.columns is None:
            raise NO_COLUMNS.error("nothing is posted yet to learn the columns from", path="columns")
        if not _loopback(config.host) and config.bearer is None and config.signature is None and not config.unguarded:
            raise UNGUARDED.error(f"'{config.host}' is reached from other machines", path="host")
        secrets = {"bearer": config.bearer, "signature.secret": None if config.signature is None else config.signature.secret}
        empty = next((path for path, secret in secrets.items() if secret == ""), None)
        if empty is not None:
            raise CODES["config.invalid"].error("it is empty: anybody could give it", path=empty)
        if config.max_body * 2 > config.buffer:
            raise CODES["config.invalid"].error("it must be at least twice `max_body`", path="buffer")
        if not config.path.startswith("/"):
            raise CODES["config.invalid"].error("a path begins with '/'", path="path")
        self._log: DurableLog | None = None
        self._keys: KeyStore | None = None
        self._server: Server | None = None
        self._only_what_is_there = False

    def sample(self, count: int) -> Sequence[bytes]:  # noqa: ARG002
        """Return nothing: columns are declared."""
        return ()

    def check(self) -> None:
        """Find out whether the address can be had, and the certificate be read.

        Raises:
            DataflareError: `webhook.cannot-listen`, `webhook.bad-tls`.
        """
        import socket

        self._tls()
        try:
            socket.create_server((self.config.host, self.config.port), family=_family(self.config.host)).close()
        except OSError as error:
            raise self._taken(error) from error

    # -- the log -----------------------------------------------------------------------------------------

    def log(self) -> DurableLog:
        """Return the log of what was posted."""
        if self._log is None:
            from dataflare_plugins.webhook.keys import Key, KeyStore
            from dataflare_sdk.inflow.durable_log import DurableLog

            place = Path(self.ctx.staging_dir)
            self._log = log = DurableLog(place / "log", max_bytes=self.config.buffer, log=self.ctx.log, count=self.ctx.metric)
            self._keys = KeyStore(place / "keys.db", (self.config.idempotency or IdempotencyConfig()).window)
            # The keys of what is in the log stand in it: the file may lack the newest of them.
            at = log.start
            while (page := log.read(at, SCAN_ROWS, 64 << 20)) is not None:
                self._keys.add(Key.of_note(n) for n in page.notes.drop_null().to_pylist())
                at = page.next
        return self._log

    def _listen(self) -> None:
        """Start the server, once."""
        if self._server is not None or self._only_what_is_there:
            return
        try:
            from dataflare_plugins.webhook.server import Server
        except ImportError as error:
            raise MISSING.error(f"the webhook needs {error.name}") from error
        from dataflare_plugins.webhook.intake import Intake

        config, log = self.config, self.log()
        assert self._keys is not None
        keys = self._keys
        server = Server(
            config.host,
            config.port,
            path=config.path,
            status=config.status,
            most_body=config.max_body,
            most_connections=config.connections,
            intake=lambda: Intake(config, log, keys, self.ctx),
            tls=self._tls(),
            count=self.ctx.metric,
        )
        try:
            server.start()
        except OSError as error:
            raise self._taken(error) from error
        self._server = server
        self.ctx.log.info(f"listening at {'https' if config.tls else 'http'}://{config.host}:{server.port}{config.path}")

    def _tls(self) -> ssl.SSLContext | None:
        if self.config.tls is None:
            return None
        base = Path(self.ctx.base_dir)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(base / self.config.tls.certificate, base / self.config.tls.key)
        except (OSError, ssl.SSLError) as error:
            raise BAD_TLS.error(f"{error.strerror or error}", path="tls") from error
        return context

    def _taken(self, error: OSError) -> Exception:
        place = f"{self.config.host}:{self.config.port}"
        return CANNOT_LISTEN.retriable(f"nobody can listen at {place}: {error.strerror or error}", path="port")

    # -- reading -----------------------------------------------------------------------------------------

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Listen, and read the log after `offset`, to `until` if given.

        Raises:
            DataflareError: `inflow.trimmed`, `webhook.cannot-listen`, `webhook.bad-tls`.
        """
        log = self.log()
        held = ((offset or {}).get("parts") or {}).get("")
        if held is not None:
            log.resume(int(held) + 1)
        self._listen()
        return LogReader(self, log, partition, extract, offset, until)

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return the end of the log; a run that stops there does not listen."""
        self._only_what_is_there = True
        end = self.log().end
        return {"v": 1, "parts": {"": end - 1} if end else {}}

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Trim what is durable everywhere; the keys that came with it outlive it."""
        held = (offset.get("parts") or {}).get("")
        if held is not None and self._log is not None and self._keys is not None:
            self._keys.sync()
            self._log.trim(int(held) + 1)

    def cancel(self) -> None:
        """Make a read that waits return."""
        super().cancel()
        if self._log is not None:
            self._log.wake()

    def close(self) -> None:
        """Stop listening, answer what was taken in, and let go of the log."""
        if self._server is not None:
            self._server.close()
        if self._log is not None:
            self._log.close()
        if self._keys is not None:
            self._keys.close()


class LogReader(MessageReader):
    """Reads the log; the position of a message is its number."""

    def __init__(
        self,
        source: WebhookSource,
        log: DurableLog,
        partition: Partition,
        extract: ExtractSpec,
        offset: Offset | None,
        until: Offset | None,
    ) -> None:
        super().__init__(source, partition, extract, offset, until)
        self._log = log
        self._ctx = source.ctx
        self._told = -1

    def fetch(self, max_rows: int, max_bytes: int, deadline: float) -> Messages | None:
        """Return the next messages of the log."""
        at = self.positions.get("")
        page = self._log.read(0 if at is None else int(at) + 1, max_rows, max_bytes, deadline)
        if (size := self._log.size) != self._told:
            self._told = size
            self._ctx.gauge("lag_bytes", size)
        return None if page is None else page.messages


def _loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _family(host: str) -> Any:
    import socket

    return socket.AF_INET6 if ":" in host else socket.AF_INET

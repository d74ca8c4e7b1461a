"""The choice between a table that is read whole and a lookup that is asked by key, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.enrich.config import EnrichConfig
from dataflare_plugins.enrich.keys import KeyPair, askable
from dataflare_sdk import CODES, DataflareError, ExtractSpec, StreamInfo, code
from dataflare_sdk.records import record
from dataflare_sdk.schema import type_name

UNKNOWN = code("enrich.unknown-lookup", 3, "The columns of a lookup are not known.", "Check where it lies; give it `columns`.")
NO_MODE = code(
    "enrich.no-such-mode",
    3,
    "A lookup cannot be read whole, or cannot be asked by key, as `mode` says.",
    "Leave `mode` out, or cast the input's key to the lookup's type in a map before.",
)


@record
class Choice:
    """What was chosen.

    Attributes:
        keyed: asked by key, not read whole.
        why: the reason, to stand after "because".
    """

    keyed: bool
    why: str


class Candidates:
    """The source and the lookup of one name, built when they are first wanted.

    Args:
        config: of the step.
        ctx: of the step, whose components they are.
    """

    def __init__(self, config: EnrichConfig, ctx: Any) -> None:
        self._config, self._ctx = config, ctx
        self._built: dict[str, Any] = {}
        self.stream: StreamInfo | None = None
        self.choice: Choice | None = None

    def build(self, kind: str) -> Any:
        """Return a new component of the lookup's name.

        Raises:
            DataflareError: `plugin.unknown`, and what its configuration raises.
        """
        return self._ctx.component(kind, self._config.lookup.use, self._config.lookup.with_)

    def get(self, kind: str) -> Any:
        """Return the component that was built for planning, None when there is none of this kind and name."""
        if kind not in self._built:
            try:
                self._built[kind] = self.build(kind)
            except DataflareError as error:
                if error.code != "plugin.unknown":
                    raise
                self._built[kind] = None
        return self._built[kind]

    def preferred(self) -> Choice:
        """Return what is chosen before the types of the keys are known.

        Raises:
            DataflareError: `enrich.no-such-mode`; `plugin.unknown`.
        """
        use, config = self._config.lookup.use, self._config
        if config.mode == "auto" and config.cache is None and self._local(use):
            return Choice(False, f"'{use}' is local")
        lookup = self.get("lookup")
        if config.mode == "keyed":
            if lookup is None:
                raise NO_MODE.error(f"'{use}' cannot be asked by key", fix="Leave `mode` out: it is read whole.", path="mode")
            return Choice(True, "`mode` says so")
        if lookup is None:
            self._need_source()
            return Choice(False, "`mode` says so" if config.mode == "table" else f"'{use}' can only be read whole")
        if config.mode == "table":
            self._need_source()
            return Choice(False, "`mode` says so")
        if self.get("source") is None:
            return Choice(True, f"'{use}' can only be asked")
        if "scans" in lookup.features:
            return Choice(False, f"'{use}' has no index to ask")
        if config.cache is not None:
            return Choice(True, "it has a `cache`")
        return Choice(True, f"'{use}' is a server") if "remote" in lookup.features else Choice(False, f"'{use}' is local")

    def _local(self, use: str) -> bool:
        """Return whether the manifest already says that it is a local file: then no lookup has to be built to know."""
        host = self._ctx.host
        if host is None:
            return False
        found = [p for p in host.provided("lookup") if p.name == use]
        return len(found) == 1 and "remote" not in found[0].features and any(p.name == use for p in host.provided("source"))

    def _need_source(self) -> None:
        if self.get("source") is None:
            if self._config.mode == "table" and self.get("lookup") is not None:
                raise NO_MODE.error(f"'{self._config.lookup.use}' cannot be read whole", fix="Leave `mode` out.", path="mode")
            self.build("source")  # says which names there are

    def columns(self) -> pa.Schema:
        """Return the lookup's columns, and choose what is preferred.

        Raises:
            DataflareError: `enrich.unknown-lookup`; as a note where only a server knows them and none may be asked now.
        """
        if self.choice is None:
            self.choice = self.preferred()
        schema = self.get("lookup").discover() if self.choice.keyed else self._streamed()
        if schema is None:
            remote = self._ctx.offline and self.get("lookup") is not None and "remote" in self.get("lookup").features
            if remote:
                known = CODES["workflow.unknown-schema"]
                note = "the columns of the lookup are not known offline"
                raise DataflareError(known.problem(note, fix="Give it `columns`.", severity="note", path="lookup"))
            raise UNKNOWN.error("the columns of the lookup are not known", path="lookup")
        return schema

    def _streamed(self) -> Any:
        if self.stream is None:
            streams = self.get("source").discover(ExtractSpec(), None)
            self.stream = streams[0] if streams else None
        return None if self.stream is None else self.stream.schema

    def settle(self, keys: Sequence[KeyPair]) -> Choice:
        """Return the choice, now that the keys are known: some cannot be asked for.

        Raises:
            DataflareError: `enrich.no-such-mode`: they have to be, as the workflow says, or as there is no other way.
        """
        assert self.choice is not None
        against = self._against(keys) if self.choice.keyed else None
        if against is None:
            return self.choice
        place, reason = against
        if self._config.mode == "keyed" or self.get("source") is None:
            raise NO_MODE.error(f"the lookup cannot be asked by key because {reason}", path=place)
        self.choice = Choice(False, reason)
        self.columns()
        return self.choice

    def _against(self, keys: Sequence[KeyPair]) -> tuple[str, str] | None:
        for key in keys:
            if not askable(key):
                own, other = type_name(key.own), type_name(key.other)
                return f"on.{key.mine}", f"'{key.mine}' is {own} and '{key.theirs}' {other}: several of its values may equal one"
        reason = self.get("lookup").against([k.theirs for k in keys])
        return None if reason is None else ("on", reason)

    def close(self) -> None:
        """Close what was built."""
        built, self._built = self._built, {}
        for component in built.values():
            if component is not None:
                component.close()

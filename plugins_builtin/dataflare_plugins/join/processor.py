"""`join`: two inputs by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from dataflare_sdk import BoundQuery, code, config, option
from dataflare_sdk.row_stage import need_column
from dataflare_sdk.schema import quote
from dataflare_sdk.whole_input import WholeInputProcessor

NOT_YET = code("workflow.not-yet", 3, "A key of the format whose feature is not built yet.", "Remove it for now.")
CLASH = code("join.column-clash", 3, "Both inputs of a join have a column of the same name.", "Use `rename` in a map before the join.")
SAME_INPUT = code("join.same-input", 3, "A join has the same input twice.", "Put a map before one of them.")


@config
class JoinConfig:
    """Columns: those of the left input, then those of the right one without its keys."""

    type: Literal["inner", "left", "full", "semi", "anti"] = option("Which rows come out.", default="inner")
    on: list[str] | dict[str, str] = option("Key columns, or left column to right column.", min_items=1, example={"customer_id": "id"})
    within: Any = option("Longest time between two rows of a stream.", default=None)


class JoinProcessor(WholeInputProcessor[JoinConfig]):
    """Keys compare as `=`: NULL matches nothing. `from: [left, right]`."""

    Config = JoinConfig
    features = frozenset({"whole_input", "sql"})
    inputs = (2, 2)

    def __init__(self, config: JoinConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if config.within is not None:
            raise NOT_YET.error("`within` is not built yet", path="within")
        self._on = dict(config.on) if isinstance(config.on, dict) else {n: n for n in config.on}
        self._bound: BoundQuery | None = None

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Check keys and names, then bind the join."""
        if len(inputs) != 2:
            raise SAME_INPUT.error("both inputs of the join are the same", path="on")
        left, right = inputs.values()
        for i, (mine, theirs) in enumerate(self._on.items()):
            where = f"on.{mine}" if isinstance(self.config.on, dict) else f"on[{i}]"
            need_column(left, mine, where)
            need_column(right, theirs, where)
        if self.config.type in ("inner", "left", "full"):
            taken = {n.lower() for n in left.names}
            for name in right.names:
                if name not in self._on.values() and name.lower() in taken:
                    raise CLASH.error(
                        f"both inputs have a column '{name}'", fix=f"rename one of them in a map before: rename: {{{name}: …}}", path="on"
                    )
        self._bound = self.bind_relation(inputs, "on")
        self._schema = self._bound.schema
        return {"": self._schema}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream, and the keys."""
        wanted = needed.get("", frozenset())
        (left, a), (right, b) = self._inputs.items()
        return {
            left: wanted & frozenset(a.names) | frozenset(self._on),
            right: (wanted & frozenset(b.names) - frozenset(self._on.values())) | frozenset(self._on.values()),
        }

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """A column comes from its side; a key of a full join from both."""
        (left, a), (right, _) = self._inputs.items()
        made: dict[str, list[tuple[str, str]]] = {}
        for name in self._schema.names:
            made[name] = [(left, name)] if name in a.names else [(right, name)]
            if self.config.type == "full" and name in self._on:
                made[name].append((right, self._on[name]))
        return {"": made}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the join as one SELECT."""
        (_, left), (_, right) = self._inputs.items()
        first, second = inputs.values()
        kind = self.config.type
        test = " AND ".join(f"l.{quote(a)} = r.{quote(b)}" for a, b in self._on.items())
        items = [f"l.{quote(n)} AS {quote(n)}" for n in left.names]
        if kind == "full":
            items = [
                f"coalesce(l.{quote(n)}, r.{quote(self._on[n])}) AS {quote(n)}" if n in self._on else i
                for n, i in zip(left.names, items, strict=True)
            ]
        if kind in ("inner", "left", "full"):
            items += [f"r.{quote(n)} AS {quote(n)}" for n in right.names if n not in self._on.values()]
        return {"": f"SELECT {', '.join(items)} FROM {first} AS l {kind.upper()} JOIN {second} AS r ON {test}"}

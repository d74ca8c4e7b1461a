"""Column lineage: from every destination column back to the source columns it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dataflare_plugins.engine.planning.bound import BoundGraph

Origins = frozenset[tuple[str, str]]


class LineageMap:
    """Follows columns through the bound nodes of a graph; what a node cannot tell is left out, never guessed."""

    def __init__(self, graph: BoundGraph) -> None:
        self._graph = graph
        self._known: dict[tuple[str, str], dict[str, Origins]] = {}

    def by_destination(self) -> dict[str, Sequence[Mapping[str, str]]]:
        """Return `destination.column` to its `{"source", "column"}` pairs, sorted."""
        found: dict[str, Sequence[Mapping[str, str]]] = {}
        for node in self._graph.order:
            if node.kind == "source":
                for output, schema in self._graph.schemas[node.id].items():
                    source = f"{node.id}.{output}" if output else node.id
                    self._known[node.id, output] = {n: frozenset({(source, n)}) for n in schema.names}
            elif node.kind == "processor":
                self._follow(node.id)
            else:
                for column, origins in self._arriving(node.id).items():
                    found[f"{node.id}.{column}"] = [{"source": s, "column": c} for s, c in sorted(origins)]
        return found

    def _follow(self, node: str) -> None:
        told = self._graph.built[node].lineage() or {}
        inputs = self._inputs(node)
        for output in self._graph.schemas[node]:
            columns = {}
            for column, parents in told.get(output, {}).items():
                origins = [inputs.get(i, {}).get(c) for i, c in parents]
                known = [o for o in origins if o is not None]
                if len(known) == len(origins):
                    columns[column] = frozenset[tuple[str, str]]().union(*known)
            self._known[node, output] = columns

    def _inputs(self, node: str) -> dict[str, dict[str, Origins]]:
        incoming = [e for e in self._graph.edges if e.target == node]
        if len(incoming) > 1 and self._graph.takes_union(node):
            return {incoming[0].input: self._arriving(node)}
        return {e.input: self._known.get((e.source, e.output), {}) for e in incoming}

    def _arriving(self, node: str) -> dict[str, Origins]:
        """Return the columns of all inputs in union."""
        merged: dict[str, Origins] = {}
        for edge in self._graph.edges:
            if edge.target == node:
                for column, origins in self._known.get((edge.source, edge.output), {}).items():
                    merged[column] = merged.get(column, frozenset()) | origins
        return merged

"""A round of a proof: twins of every system the workflow names, and the workflow that uses them instead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflare_plugins.prove.codes import NO_TWIN
from dataflare_sdk import DataflareError, DestinationTwin, ExtractSpec, Host, Node, ScratchPlace, SourceTwin, Workflow, dotted
from dataflare_sdk.records import field, record


@record
class Premises:
    """What all rounds of a proof share.

    Attributes:
        host: the runtime.
        original: the workflow as its file says it.
        root: folder of the proof.
        seed: its seed.
        script: text of `<workflow>.sql`, or None.
        settings: blocks laid over the workflow's.
        resources: servers the twins share.
    """

    host: Host
    original: Workflow
    root: Path
    seed: int
    script: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        """Stop the servers."""
        for resource in self.resources.values():
            with contextlib.suppress(Exception):
                resource.close()
        self.resources.clear()


class World:
    """The twins of one round.

    Args:
        premises: of the proof.
        number: of the round.

    Raises:
        DataflareError: `prove.no-twin`, and whatever a twin raises.
    """

    def __init__(self, premises: Premises, number: int) -> None:
        self._premises = premises
        self.folder = premises.root / f"round-{number}"
        self.base = self.folder / "work"
        self.base.mkdir(parents=True)
        self.sources: dict[str, SourceTwin] = {}
        self._twins: list[Any] = []
        self._seed = premises.seed
        try:
            self.workflow = self._made("twins", premises.original)
            self._load()
        except BaseException:
            self.close()
            raise

    def _made(self, area: str, workflow: Workflow) -> Workflow:
        nodes = [self._source(n) if n.kind == "source" else n for n in workflow.nodes]
        nodes = [self._step(n) if n.kind == "processor" else n for n in nodes]
        nodes = [self._destination(n, area) if n.kind == "destination" else n for n in nodes]
        state = {"store": "sqlite", **_checkpoint(workflow.settings)}
        settings = {**workflow.settings, "state": state, **self._premises.settings}
        return replace(workflow, nodes=tuple(nodes), settings=settings, base_dir=str(self.base))

    # -- twins -------------------------------------------------------------------------------------------

    def _place(self, node: str, area: str = "twins") -> ScratchPlace:
        folder = self.folder / area
        folder.mkdir(parents=True, exist_ok=True)
        premises = self._premises
        return ScratchPlace(
            node=node,
            folder=folder,
            base_dir=Path(premises.original.base_dir),
            seed=self._seed,
            scripted=premises.script is not None,
            resources=premises.resources,
            root=premises.root,
        )

    def _source(self, node: Node) -> Node:
        twin = self._twin("source", node.use, node.config, (*node.path, "with"), self._place(node.id))
        self.sources[node.id] = twin
        return replace(node, config=twin.config)

    def _step(self, node: Node) -> Node:
        """Give a lookup a twin too, and a file of code its place: the workflow's folder is another one here."""
        config = dict(node.config)
        lookup = config.get("lookup")
        if isinstance(lookup, Mapping) and "use" in lookup:
            path = (*node.path, "with", "lookup", "with")
            if not any(p.name == str(lookup["use"]).rpartition("/")[2] for p in self._premises.host.provided("source")):
                # What can only be asked has nobody who could make another one of it.
                place = self._premises.original.place(*path[:-1])
                raise NO_TWIN.error(f"the lookup '{lookup['use']}' of '{node.id}' has no scratch twin", **place)
            twin = self._twin("source", str(lookup["use"]), lookup.get("with") or {}, path, self._place(f"{node.id}.lookup"))
            self.sources[f"{node.id}.lookup"] = twin
            config["lookup"] = {**lookup, "with": twin.config}
        if isinstance(config.get("file"), str):
            config["file"] = str((Path(self._premises.original.base_dir) / config["file"]).absolute())
        return replace(node, config=config)

    def _destination(self, node: Node, area: str) -> Node:
        twin: DestinationTwin = self._twin("destination", node.use, node.config, (*node.path, "with"), self._place(node.id, area))
        return replace(node, config=twin.config)

    def _twin(self, kind: str, use: str, config: Mapping[str, Any], path: tuple[str | int, ...], place: ScratchPlace) -> Any:
        factory = self._premises.host.factory(kind, use)
        scratch = getattr(factory, "scratch", None)
        place_of = self._premises.original.place(*path[:-1])
        if scratch is None:
            raise NO_TWIN.error(f"the {kind} '{use}' of '{place.node}' has no scratch twin", **place_of)
        try:
            twin = scratch(factory.configure(config, path), place)
        except DataflareError as error:
            raise _below(error, path) from error
        if twin is None:
            raise NO_TWIN.error(f"the {kind} '{use}' of '{place.node}' has no scratch twin", **place_of)
        self._twins.append(twin)
        return twin

    def _load(self) -> None:
        script, loaded = self._premises.script, set[str]()
        if script is None:
            return
        for twin in self.sources.values():
            name = twin.database()
            if name is not None and name not in loaded:
                loaded.add(name)
                twin.load(script)

    # -- what else a proof asks of it --------------------------------------------------------------------

    @contextlib.contextmanager
    def beside(self, number: int) -> Iterator[Workflow]:
        """Give the workflow with the same sources, but destinations and state of its own: for the oracle."""
        base, area = self.folder / f"oracle-{number}", f"oracle-{number}-twins"
        base.mkdir()
        nodes = [self._destination(self._premises.original.node(n.id), area) if n.kind == "destination" else n for n in self.workflow.nodes]
        yield replace(self.workflow, nodes=tuple(nodes), base_dir=str(base))

    def finished(self) -> bool:
        """Whether the newest run has come to its end, whatever became of its process: the next begins anew."""
        newest = self._look(lambda store: store.load(self.workflow.name), None)
        return bool(newest is not None and newest.final and newest.done)

    def fence(self) -> int:
        """Return the newest fence: it is raised when a run has taken the lock, before it does anything."""
        return int(self._look(lambda store: store.fence(self.workflow.name), 0))

    def _look(self, ask: Callable[[Any], Any], otherwise: Any) -> Any:
        """Look into the state store without taking anything of it."""
        path = self.base / ".dataflare" / "state.db"
        if not path.exists():
            return otherwise
        store = self._premises.host.build("state_store", "sqlite", {"path": str(path)})
        try:
            return ask(store)
        finally:
            store.close()

    def close(self) -> None:
        """Close every twin."""
        for twin in reversed(self._twins):
            with contextlib.suppress(Exception):
                twin.close()
        self._twins.clear()


def extract_of(node: Node) -> ExtractSpec:
    """Return how a source is read, as far as a writer has to know."""
    block = node.blocks.get("extract") or {}
    key = block.get("key") or ()
    return ExtractSpec(
        mode=str(block.get("mode") or "full"),
        cursor=block.get("cursor"),
        key=(key,) if isinstance(key, str) else tuple(key),
    )


def _checkpoint(settings: Mapping[str, Any]) -> dict[str, Any]:
    state = settings.get("state") or {}
    return {"checkpoint": state["checkpoint"]} if state.get("checkpoint") else {}


def _below(error: DataflareError, path: tuple[str | int, ...]) -> DataflareError:
    prefix = str(dotted(path))

    def under(inner: str | None) -> str:
        if inner is None or inner.startswith(prefix):
            return inner or prefix
        return f"{prefix}.{inner}"

    return type(error)(*(replace(p, path=under(p.path)) for p in error.problems))

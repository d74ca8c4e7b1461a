"""The SDK's suites, run on the components of one plugin at one isolation level, check by check."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.certify.asked import Asked, Certificate, put_files
from dataflare_plugins.certify.receiving import Receiver
from dataflare_sdk import DataflareError, ExtractSpec
from dataflare_sdk.commands import Runtime
from dataflare_sdk.plans import extract_from
from dataflare_sdk.records import record
from dataflare_sdk.testing import DestinationSuite, FakeContext, ProcessorSuite, SourceSuite, StateStoreSuite, Suite

KINDS = ("source", "processor", "destination", "state_store")
"""Kinds that there is a suite for."""
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@record
class Result:
    """How one check went.

    Attributes:
        component: `KIND/NAME`.
        level: isolation level it ran at.
        check: its name.
        status: `passed`, `failed` or `not run`.
        reason: why it is not `passed`.
    """

    component: str
    level: str
    check: str
    status: str
    reason: str = ""

    def to_json(self) -> dict[str, str]:
        """Return it as a plain object."""
        return {name: getattr(self, name) for name in ("component", "level", "check", "status", "reason")}


class Checker:
    """Runs suites.

    Args:
        runtime: builds what components ask of their context, and reads destinations back.
        factory: returns a component's class or function by its entry, at the level in question.
        level: the level, for the results.
        certificate: what the author says.
        limit: seconds a check may take before it counts as hanging.
    """

    def __init__(self, runtime: Runtime, factory: Callable[[str], Any], level: str, certificate: Certificate, limit: float) -> None:
        self._runtime = runtime
        self._factory = factory
        self._level = level
        self._certificate = certificate
        self._limit = limit
        self._receivers: dict[Path, Receiver] = {}

    def check(self, component: Any) -> Iterator[Result]:
        """Run the suite of a component of the manifest; yield a result per check."""
        name = f"{component.kind}/{component.name}"
        asked = self._certificate.components.get(name)
        if asked is None:
            yield Result(name, self._level, "suite", NOT_RUN, f"certify.yaml says nothing of {name}")
            return
        with tempfile.TemporaryDirectory(prefix="dataflare-certify-", ignore_cleanup_errors=True) as folder:
            try:
                factory = self._factory(component.entry)
                suite = self._suite(component.kind, factory, asked, Path(folder))
            except Exception as error:
                yield Result(name, self._level, "can-be-built", FAILED, _told(error))
                return
            yield self._declares(name, component, factory)
            for check in suite.checks():
                reason = self._run(lambda c=check, s=suite: c.run(s))  # type: ignore[misc]
                yield Result(name, self._level, check.name, FAILED if reason else PASSED, reason)
                if reason == self._hangs():
                    yield Result(name, self._level, "suite", NOT_RUN, "the checks after one that hangs")
                    break
            while self._receivers:
                self._receivers.popitem()[1].close()

    def _declares(self, name: str, component: Any, factory: Any) -> Result:
        """Compare the manifest with the class."""
        # Of a plugin that is isolated the class is not here; its features are what the manifest says.
        declared = sorted(getattr(factory, "features", component.features) if self._level == "inprocess" else component.features)
        said = sorted(component.features)
        reason = "" if declared == said else f"the manifest says {said}, the code {declared}: run `dataflare plugin manifest`"
        return Result(name, self._level, "manifest-says-what-the-code-says", FAILED if reason else PASSED, reason)

    def _run(self, act: Callable[[], None]) -> str:
        """Run a check on a thread of its own; return why it failed, "" when it did not."""
        found: list[str] = []

        def work() -> None:
            try:
                act()
                found.append("")
            except Exception as error:
                found.append(_told(error))

        thread = threading.Thread(target=work, name="dataflare-certify", daemon=True)
        thread.start()
        thread.join(self._limit)
        return found[0] if found else self._hangs()

    def _hangs(self) -> str:
        return f"it did not end within {self._limit:g} s"

    # -- suites ------------------------------------------------------------------------------------------

    def _suite(self, kind: str, factory: Any, asked: Asked, folder: Path) -> Suite:
        make = self._maker(factory, asked)
        if kind == "source":
            return SourceSuite(make, folder=folder, extract=extract_of(asked))
        if kind == "processor":
            inputs = {name: pa.table(columns) for name, columns in asked.inputs.items()}
            return ProcessorSuite(make, inputs=inputs, folder=folder, components=self._component)
        if kind == "state_store":
            return StateStoreSuite(lambda place: make(FakeContext(place, "state")), folder=folder)
        return DestinationSuite(make, read=lambda place: self.read_back(asked, place), folder=folder)

    def _maker(self, factory: Any, asked: Asked) -> Callable[[Any], Any]:
        def make(ctx: Any) -> Any:
            put_files(self._certificate, Path(ctx.base_dir))
            with_ = {**asked.with_, **self._received(asked, Path(ctx.base_dir))}
            parsed = factory.configure(with_) if hasattr(factory, "Config") else with_
            return factory(parsed, ctx)

        return make

    def _received(self, asked: Asked, place: Path) -> dict[str, int]:
        """Return what `with` is given for a destination that sends over HTTP: the port of the place's own server."""
        if asked.receive is None:
            return {}
        if place not in self._receivers:
            self._receivers[place] = Receiver(place / asked.receive.into)
        return {asked.receive.port: self._receivers[place].port}

    def _component(self, kind: str, name: str, config: Mapping[str, Any]) -> Any:
        return self._runtime.host.build(kind, name, config)

    def read_back(self, asked: Asked, place: Path) -> list[tuple[Any, ...]] | None:
        """Return the rows a destination has written, sorted, through a source; None when there is nothing."""
        if asked.read is None:
            raise AssertionError("certify.yaml does not say how its rows are read back (`read`)")
        factory = self._runtime.host.factory("source", asked.read.use)
        ctx = FakeContext(place, "read", self._component)
        source = factory(factory.configure(dict(asked.read.with_)), ctx)
        try:
            return sorted(_rows(source), key=repr)
        except DataflareError as error:
            if error.code in ("world.missing-input", "world.missing-table"):
                return None
            raise
        finally:
            source.close()


def extract_of(asked: Asked) -> ExtractSpec:
    """Return the extraction an author asks for."""
    return extract_from(asked.extract, asked.with_.get("columns"))


def _rows(source: Any) -> list[tuple[Any, ...]]:
    from dataflare_sdk import End, Pause

    found: list[tuple[Any, ...]] = []
    extract = ExtractSpec()
    for stream in source.discover(extract, None):
        for part in source.partitions(stream, extract):
            reader = source.open(part, extract, None)
            try:
                while not isinstance(message := reader.read(8192, 1 << 24, float("inf")), (End, Pause)):
                    found += [tuple(row.values()) for row in message.data.to_pylist()] if message is not None else []
            finally:
                reader.close()
    return found


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:500] or type(error).__name__

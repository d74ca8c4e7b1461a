"""Lineage is told as OpenLineage's own library understands it: every event is read into its classes, names are held to its naming."""

from __future__ import annotations

import datetime
import json
import re
import typing
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import attr
import pytest
from openlineage.client.event_v2 import RunEvent
from openlineage.client.facet_v2 import (
    column_lineage_dataset,
    datasource_dataset,
    documentation_job,
    error_message_run,
    input_statistics_input_dataset,
    job_type_job,
    output_statistics_output_dataset,
    parent_run,
    processing_engine_run,
    schema_dataset,
)
from openlineage.client.generated import base
from openlineage.client.naming import dataset as naming
from openlineage.client.serde import Serde
from tests.gated import WRITTEN, Gated, flow
from tests.servers.receiver import Receiver

import dataflare
from dataflare.lifecycle import Runtime
from dataflare_sdk import DataflareError

FACETS: dict[str, type[Any]] = {
    "schema": schema_dataset.SchemaDatasetFacet,
    "dataSource": datasource_dataset.DatasourceDatasetFacet,
    "columnLineage": column_lineage_dataset.ColumnLineageDatasetFacet,
    "inputStatistics": input_statistics_input_dataset.InputStatisticsInputDatasetFacet,
    "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
    "errorMessage": error_message_run.ErrorMessageRunFacet,
    "processing_engine": processing_engine_run.ProcessingEngineRunFacet,
    "parent": parent_run.ParentRunFacet,
    "jobType": job_type_job.JobTypeJobFacet,
    "documentation": documentation_job.DocumentationJobFacet,
}
KEPT = {"_producer", "_schemaURL"}


def made(kind: Any, raw: Any) -> Any:
    """Read plain JSON into a class of the library, strictly: a key it has not, or one that is missing, is an error."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [made(inner[0], item) for item in raw]
    if origin is dict:
        return {name: made(inner[1], item) for name, item in raw.items()}
    if (inner and not origin) or str(origin) in ("typing.Union", "<class 'types.UnionType'>"):
        return None if raw is None else made(next(a for a in inner if a is not type(None)), raw)
    if attr.has(kind):
        attr.resolve_types(kind)
        known = {f.name.lstrip("_") if f.name in KEPT else f.name: f for f in attr.fields(kind)}
        given = {k: v for k, v in raw.items() if k not in KEPT}
        assert set(given) <= set(known), (kind, set(given) - set(known))
        return kind(**{k.lstrip("_"): made(known[k].type, v) for k, v in given.items()})
    return raw


URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:([A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*")
URIS = ("_producer", "producer", "_schemaURL", "schemaURL", "uri")


def formats(value: Any) -> None:
    """Hold values to the formats of the specification's schemas (`uri`, `uuid`, `date-time`), which the library does not look at."""
    if isinstance(value, list):
        for item in value:
            formats(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in URIS:
                assert URI.fullmatch(item), (name, item)
            elif name == "runId":
                assert str(uuid.UUID(item)) == item
            elif name == "eventTime":
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", item)
            elif name == "rowCount":
                assert type(item) is int
            formats(item)


def understood(event: dict[str, Any]) -> RunEvent:
    """Return the event as the library's own, and hold what it writes of it to what was written."""
    formats(event)

    def facets(raw: dict[str, Any]) -> dict[str, Any]:
        for name, facet in raw.items():
            assert facet["_schemaURL"] == FACETS[name]._get_schema(), name
            assert facet["_producer"] == event["producer"]
        return {name: made(FACETS[name], facet) for name, facet in raw.items()}

    def dataset(kind: Any, raw: dict[str, Any], own: str) -> Any:
        assert set(raw) == {"namespace", "name", "facets", own}
        return kind(raw["namespace"], raw["name"], facets=facets(raw["facets"]), **{own: facets(raw[own])})

    assert event["schemaURL"] == RunEvent._get_schema()
    library = RunEvent(
        eventType=base.EventType[event["eventType"]],
        eventTime=event["eventTime"],
        run=base.Run(runId=event["run"]["runId"], facets=facets(event["run"]["facets"])),
        job=base.Job(event["job"]["namespace"], event["job"]["name"], facets=facets(event["job"]["facets"])),
        inputs=[dataset(base.InputDataset, raw, "inputFacets") for raw in event["inputs"]],
        outputs=[dataset(base.OutputDataset, raw, "outputFacets") for raw in event["outputs"]],
        producer=event["producer"],
    )
    assert plain(json.loads(Serde.to_json(library))) == plain(event)
    return library


def plain(value: Any) -> Any:
    """Return a value without what is empty and without who produced it, which the library fills in by itself."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if v not in (None, [], {}) and k != "_producer"}
    return [plain(v) for v in value] if isinstance(value, list) else value


def events(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for event in found:
        understood(event)
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("URL", "API_KEY", "NAMESPACE", "PARENT_ID", "DISABLED", "ENDPOINT"):
        monkeypatch.delenv(f"OPENLINEAGE_{name}", raising=False)
    return tmp_path


def test_a_run_is_told_from_start_to_end(here: Path) -> None:
    (here / "in.csv").write_text("id,price,rate\n1,2.5,2\n2,3.5,3\n3,x,1\n")
    document = flow(
        description="Sums.",
        sources={"s": {"use": "csv", "with": {"path": "in.csv", "columns": {"id": "BIGINT", "price": "DOUBLE", "rate": "BIGINT"}}}},
        processors=[{"id": "m", "use": "map", "with": {"set": {"total": "price * rate"}, "drop": ["rate"]}}],
        destinations={
            "o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}},
            "p": {"use": "parquet", "with": {"path": "o.parquet"}},
        },
        errors={"on_record": "dead_letter"},
        observe={"lineage": "openlineage"},
    )
    run = dataflare.run(document, check=True)
    assert run.rows["written"] == 4
    first, last = events(here / ".dataflare" / "openlineage.jsonl")
    assert (first["eventType"], last["eventType"]) == ("START", "COMPLETE")
    assert first["run"]["runId"] == last["run"]["runId"] == str(uuid.UUID(run.document["run_id"]))
    times = [datetime.datetime.fromisoformat(e["eventTime"]) for e in (first, last)]
    assert times == sorted(times)
    assert (last["job"]["namespace"], last["job"]["name"]) == ("default", "w")
    assert last["job"]["facets"]["documentation"]["description"] == "Sums."
    [source], [table, file] = last["inputs"], last["outputs"]
    assert (source["namespace"], source["name"]) == ("file", str(here / "in.csv"))
    assert (table["namespace"], table["name"]) == (f"sqlite://{here / 'o.db'}", "t")
    assert (file["namespace"], file["name"]) == ("file", str(here / "o.parquet"))
    assert source["inputFacets"]["inputStatistics"]["rowCount"] == 3
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == 2
    shown = [(f["name"], f["type"]) for f in table["facets"]["schema"]["fields"]]
    assert shown == [("id", "BIGINT"), ("price", "DOUBLE"), ("total", "DOUBLE")]
    columns = table["facets"]["columnLineage"]["fields"]
    told = {column: [(f["namespace"], f["name"], f["field"]) for f in made["inputFields"]] for column, made in columns.items()}
    where = ("file", str(here / "in.csv"))
    assert told == {"id": [(*where, "id")], "price": [(*where, "price")], "total": [(*where, "price"), (*where, "rate")]}
    assert told == {
        c.removeprefix("o."): [(*where, x["column"]) for x in found] for c, found in run.document["lineage"].items() if c[0] == "o"
    }
    assert first["inputs"][0]["inputFacets"] == {}


def test_a_failure_is_told_with_its_message_and_without_secrets(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "TheCanarySings")
    document = flow(
        sources={"s": {"use": "csv", "with": {"path": "${secret:CANARY}/in.csv"}}},
        observe={"lineage": {"openlineage": {"file": "l.jsonl"}}},
    )
    run = dataflare.run(document)
    first, last = events(here / "l.jsonl")
    assert (first["eventType"], last["eventType"]) == ("START", "FAIL")
    assert run.error is not None
    assert last["run"]["facets"]["errorMessage"]["message"] == f"{run.error['message']} [world.missing-input]"
    assert "***" in run.error["message"]
    assert "TheCanarySings" not in (here / "l.jsonl").read_text()


def test_a_run_that_is_stopped_is_told_as_aborted_and_goes_on_as_another(here: Path) -> None:
    run = Gated(here, lineage={"openlineage": {"every": "0s"}})
    try:
        run.advance(lambda: run.written() > 300)
        run.handle.cancel()
    finally:
        report = run.finish()
    assert report.status == "interrupted"
    path = here / ".dataflare" / "openlineage.jsonl"
    told = events(path)
    assert (told[0]["eventType"], told[-1]["eventType"]) == ("START", "ABORT")
    assert "RUNNING" in {e["eventType"] for e in told[1:-1]}
    rows = [e["outputs"][0]["outputFacets"].get("outputStatistics", {}).get("rowCount", 0) for e in told]
    assert rows == sorted(rows)
    assert rows[-1] == report.document["rows"]["written"] == run.written()
    run.allow(10**9)
    again = dataflare.run(run.path, check=True)
    assert again.document["resumed"]
    ids = [e["run"]["runId"] for e in events(path)]
    assert len(set(ids)) == 2, "an ended run of OpenLineage does not begin again"
    assert events(path)[-1]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == WRITTEN


def test_to_a_server_with_the_variables_of_the_library(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = str(uuid.uuid4())
    with Receiver() as receiver:
        monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "key-canary")
        monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "shop")
        monkeypatch.setenv("OPENLINEAGE_PARENT_ID", f"air/flow/dag/{parent}")
        dataflare.run(flow(observe={"lineage": "openlineage"}), check=True)
        monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
        dataflare.run(flow(observe={"lineage": "openlineage"}), check=True)
    assert [(r.path, r.headers["authorization"]) for r in receiver.requests] == [("/api/v1/lineage", "Bearer key-canary")] * 2
    told = [json.loads(r.body) for r in receiver.requests]
    for event in told:
        understood(event)
    assert told[0]["job"]["namespace"] == "shop"
    facet = told[0]["run"]["facets"]["parent"]
    assert (facet["run"]["runId"], facet["job"]) == (parent, {"namespace": "air/flow", "name": "dag"})
    assert not (here / ".dataflare" / "openlineage.jsonl").exists()


def test_a_server_that_refuses_is_a_note(here: Path) -> None:
    with Receiver() as receiver:
        receiver.always = 401
        lineage = {"openlineage": {"url": receiver.url, "api_key": "key-canary"}}
        run = dataflare.run(flow(observe={"lineage": lineage}), check=True)
    assert [p.code for p in run.problems] == ["monitor.failed"]
    assert "canary" not in json.dumps(run.document)


def test_a_parent_that_is_none(here: Path) -> None:
    with pytest.raises(DataflareError) as found:
        dataflare.run(flow(observe={"lineage": {"openlineage": {"parent": "a/b/c"}}}), check=True)
    assert [(p.code, p.path) for p in found.value.problems] == [("config.invalid", "observe.lineage.openlineage.parent")]


@pytest.mark.parametrize(
    ("kind", "use", "config", "stream", "expected"),
    [
        ("source", "postgres", {"url": "postgresql://u:p@db.example/shop", "table": "public.t"}, "s", naming.Postgres("db.example", "5432", "shop", "public", "t")),
        ("source", "postgres", {"url": "postgresql://u:p@db.example:1/shop", "tables": ["a.t", "b.t"]}, "b.t", naming.Postgres("db.example", "1", "shop", "b", "t")),
        ("destination", "postgres", {"url": "postgresql://u:p@db.example/shop", "table": "t"}, None, naming.Postgres("db.example", "5432", "shop", "public", "t")),
        ("source", "mysql", {"url": "mysql://u:p@db.example/shop", "table": "t"}, "s", naming.MySQL("db.example", "3306", "shop", "t")),
        ("destination", "mysql", {"url": "mysql://u:p@db.example:1/shop", "table": "other.t"}, None, naming.MySQL("db.example", "1", "other", "t")),
        ("source", "csv", {"path": "/in/a.csv"}, "s", ("file", "/in/a.csv")),
        ("source", "parquet", {"path": "https://u:p@files.example/a/b.parquet?key=1"}, "s", ("https://files.example", "/a/b.parquet")),
        ("destination", "jsonl", {"path": "/out/d/"}, None, ("file", "/out/d")),
        ("source", "duckdb", {"path": "/d/shop.db", "table": "t"}, "s", ("duckdb:///d/shop.db", "shop.main.t")),
        ("destination", "duckdb", {"path": "/d/shop.db", "table": "t"}, None, ("duckdb:///d/shop.db", "shop.main.t")),
        ("source", "sqlite", {"path": "/d/shop.db", "table": "t"}, "s", ("sqlite:///d/shop.db", "t")),
        ("source", "sqlite", {"path": "/d/shop.db", "query": "SELECT 1 AS x"}, "s", None),
    ],
)  # fmt: skip
def test_names_of_datasets(kind: str, use: str, config: dict[str, Any], stream: str | None, expected: Any) -> None:
    with Runtime() as runtime:
        component = runtime.host.build(kind, use, config)
        found = component.dataset() if stream is None else component.dataset(stream)
        component.close()
    if expected is not None and not isinstance(expected, tuple):
        expected = (expected.get_namespace(), expected.get_name())
    assert found == expected


@pytest.mark.parametrize("bad", [False, True])
def test_a_place_is_named_by_a_uri_whatever_its_folder_is_called(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch, bad: bool
) -> None:
    folder = tmp_path / "my f\u00f6lder 100% <1>"
    folder.mkdir()
    monkeypatch.chdir(folder)
    error = [{"id": "f", "use": "map", "with": {"set": {"x": "error('no')"}}}] if bad else []
    document = flow(
        processors=error, destinations={"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}}}, observe={"lineage": "openlineage"}
    )
    assert dataflare.run(document).status == ("failed" if bad else "done")
    last = events(folder / ".dataflare" / "openlineage.jsonl")[-1]
    [place] = {o["facets"]["dataSource"]["uri"] for o in last["outputs"]}
    assert unquote(place) == f"sqlite://{folder / 'o.db'}"

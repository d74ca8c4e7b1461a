"""`observe: {lineage: openlineage}`: START, RUNNING, and COMPLETE, FAIL or ABORT of a run, with what it read and wrote."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dataflare_plugins.monitor_openlineage import facts
from dataflare_plugins.monitor_openlineage.facts import Dataset, facet
from dataflare_sdk import CODES, Duration, Monitor, Plan, RunEvent, Workflow, config, option
from dataflare_sdk.atomic import explained, make_folder
from dataflare_sdk.posting import Poster

TERMINAL = {"done": "COMPLETE", "interrupted": "ABORT"}
"""Status of a run to the type of its last event; any other is FAIL."""
STREAMING = ("incremental", "cdc")


@config
class OpenLineageConfig:
    """Where lineage goes; what is not said here is taken from the environment, as OpenLineage's own clients do."""

    url: str | None = option("Server that takes events; by default `OPENLINEAGE_URL`.", default=None, example="http://marquez:5000")
    endpoint: str | None = option("Path there; by default `OPENLINEAGE_ENDPOINT`, or `api/v1/lineage`.", default=None)
    api_key: str | None = option("Key for the server; by default `OPENLINEAGE_API_KEY`.", default=None, example="${secret:LINEAGE_KEY}")
    file: str | None = option(
        "File that events are appended to, one a line. Without `url` it is `.dataflare/openlineage.jsonl`.", default=None
    )
    namespace: str | None = option("Namespace of jobs; by default `OPENLINEAGE_NAMESPACE`, or `default`.", default=None)
    parent: str | None = option(
        "Run that this one is a part of, `namespace/job/run id`; by default `OPENLINEAGE_PARENT_ID`.", default=None
    )  # fmt: skip
    every: Duration = option(
        "Shortest time between two RUNNING events; each is sent when an epoch was committed.", default=60.0, example="1m"
    )
    timeout: Duration = option("Longest wait for the server.", default=5.0)
    attempts: int = option("How often an event is sent.", default=5, minimum=1, maximum=100)


class OpenLineageMonitor(Monitor[OpenLineageConfig]):
    """Writes plain JSON that follows the specification; no library is needed for it."""

    Config = OpenLineageConfig
    features = frozenset({"lineage"})

    def __init__(self, config: OpenLineageConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        env = os.environ
        url = config.url or env.get("OPENLINEAGE_URL")
        self._poster: Poster | None = None
        if url:
            endpoint = config.endpoint or env.get("OPENLINEAGE_ENDPOINT") or "api/v1/lineage"
            key = config.api_key or env.get("OPENLINEAGE_API_KEY")
            headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
            address = f"{url.rstrip('/')}/{endpoint.lstrip('/')}"
            self._poster = Poster(address, headers, timeout=config.timeout, attempts=config.attempts)
        file = config.file or (None if url else ".dataflare/openlineage.jsonl")
        self._file = None if file is None else Path(ctx.base_dir) / file
        self._namespace = config.namespace or env.get("OPENLINEAGE_NAMESPACE") or "default"
        self._parent = _parent(config.parent, env.get("OPENLINEAGE_PARENT_ID"))
        self._silent = env.get("OPENLINEAGE_DISABLED", "").lower() == "true"
        self._producer = f"urn:dataflare:{_version()}"
        self._inputs: list[Dataset] = []
        self._outputs: list[Dataset] = []
        self._plan: Plan | None = None
        self._streaming = False
        self._started = False
        self._told_at = time.monotonic()

    def begin(self, run_id: str, workflow: Workflow) -> None:
        """Remember whose run it is. A run that is resumed later is another one to OpenLineage: its end was told."""
        self._run_id = str(uuid.UUID(run_id))
        self._job = workflow.name
        self._description = str(workflow.document.get("description") or "") if isinstance(workflow.document, Mapping) else ""

    def planned(self, plan: Plan) -> None:
        """Tell the start.

        Raises:
            DataflareError: `monitor.not-taken`, `world.*` of the file.
        """
        self._plan = plan
        self._inputs, self._outputs = facts.inputs(plan), facts.outputs(plan)
        modes = [(node.settings.get("extract") or {}).get("mode") for node in plan.nodes if node.kind == "source"]
        self._streaming = any(mode in STREAMING for mode in modes)
        self._start()

    def hear(self, event: RunEvent) -> None:
        """Tell that the run goes on, now and then, with what is committed.

        Raises:
            DataflareError: `monitor.not-taken`, `world.*` of the file.
        """
        if event.event != "epoch.committed" or event.data.get("final"):
            return
        if time.monotonic() - self._told_at >= self.config.every:
            self._told_at = time.monotonic()
            self._tell("RUNNING", event.time, event.data["counts"], {})

    def end(self, document: Mapping[str, Any]) -> None:
        """Tell the end, with the counts of the run's document.

        Raises:
            DataflareError: `monitor.not-taken`, `world.*` of the file.
        """
        if not self._started:
            self._start()
        facets = {}
        error = document.get("error")
        if error:
            message = f"{error['message']} [{error['code']}]"
            facets["errorMessage"] = facet("ErrorMessageRunFacet", self._producer, message=message, programmingLanguage="PYTHON")
        counts = {node["id"]: node for node in document.get("nodes", ())}
        self._tell(TERMINAL.get(str(document["status"]), "FAIL"), time.time(), counts, facets)

    def _start(self) -> None:
        self._started = True
        self._tell("START", time.time(), {}, {})

    def _tell(self, kind: str, at: float, counts: Mapping[str, Mapping[str, Any]], facets: Mapping[str, Any]) -> None:
        if self._silent:
            return
        event = {
            "eventType": kind,
            "eventTime": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "run": {"runId": self._run_id, "facets": {**self._run_facets(), **facets}},
            "job": {"namespace": self._namespace, "name": self._job, "facets": self._job_facets()},
            "inputs": [self._input(dataset, counts) for dataset in self._inputs],
            "outputs": [self._output(dataset, counts) for dataset in self._outputs],
            "producer": self._producer,
            "schemaURL": f"{facts.SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        }
        line = json.dumps(event)
        if self._file is not None:
            make_folder(self._file.parent)
            with explained(self._file), self._file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if self._poster is not None:
            self._poster.post(line.encode())

    def _run_facets(self) -> dict[str, Any]:
        version = _version()
        engine = facet(
            "ProcessingEngineRunFacet", self._producer, version=version, name="dataflare", openlineageAdapterVersion=version
        )  # fmt: skip
        if self._parent is None:
            return {"processing_engine": engine}
        namespace, job, run = self._parent
        parent = facet("ParentRunFacet", self._producer, run={"runId": run}, job={"namespace": namespace, "name": job})
        return {"processing_engine": engine, "parent": parent}

    def _job_facets(self) -> dict[str, Any]:
        processing = "STREAMING" if self._streaming else "BATCH"
        kind = facet("JobTypeJobFacet", self._producer, processingType=processing, integration="DATAFLARE", jobType="WORKFLOW")
        described = {"documentation": facet("DocumentationJobFacet", self._producer, description=self._description)}
        return {"jobType": kind, **(described if self._description else {})}

    def _input(self, dataset: Dataset, counts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        rows = facts.rows(dataset, counts, "rows_in")
        told = {} if rows is None else {"inputStatistics": facet("InputStatisticsInputDatasetFacet", self._producer, rowCount=rows)}
        return {"namespace": dataset.namespace, "name": dataset.name, "facets": self._facets(dataset), "inputFacets": told}

    def _output(self, dataset: Dataset, counts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        rows = facts.rows(dataset, counts, "rows_out")
        told = {} if rows is None else {"outputStatistics": facet("OutputStatisticsOutputDatasetFacet", self._producer, rowCount=rows)}
        facets = self._facets(dataset)
        assert self._plan is not None
        columns = facts.column_lineage(self._plan, dataset, self._inputs)
        if columns:
            fields = {name: {"inputFields": fields} for name, fields in columns.items()}
            facets["columnLineage"] = facet("ColumnLineageDatasetFacet", self._producer, fields=fields)
        return {"namespace": dataset.namespace, "name": dataset.name, "facets": facets, "outputFacets": told}

    def _facets(self, dataset: Dataset) -> dict[str, Any]:
        fields = [{"name": name, "type": kind} for name, kind in dataset.columns.items()]
        # A namespace may hold a path as it is; a URI has no blanks and no letters beyond ASCII.
        uri = quote(dataset.namespace if ":" in dataset.namespace else f"{dataset.namespace}:", safe=":/?#[]@!$&'()*+,;=~")
        return {
            "schema": facet("SchemaDatasetFacet", self._producer, fields=fields),
            "dataSource": facet("DatasourceDatasetFacet", self._producer, name=dataset.namespace, uri=uri),
        }


def _parent(told: str | None, of_environment: str | None) -> tuple[str, str, str] | None:
    """Take `namespace/job/run id` apart; the namespace may hold slashes.

    Raises:
        DataflareError: `config.invalid`; what comes from the environment is left out when it is wrong.
    """
    parts = (told or of_environment or "").rsplit("/", 2)
    try:
        if len(parts) == 3 and all(parts):
            return parts[0], parts[1], str(uuid.UUID(parts[2]))
    except ValueError:
        pass
    if told is not None:
        raise CODES["config.invalid"].error("expected `namespace/job/run id`, the last a UUID", path="parent")
    return None


def _version() -> str:
    """Return the version of DataFlare."""
    import importlib.metadata

    try:
        return importlib.metadata.version("dataflare")
    except importlib.metadata.PackageNotFoundError:
        return "0"

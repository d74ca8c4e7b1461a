"""JSON Schema of workflow files, with every installed connector and processor: for editors and checks."""

from __future__ import annotations

from typing import Any

from dataflare_plugins.engine.parsing.blocks import DestinationBlock, ProcessorBlock, SourceBlock, WorkflowBlock
from dataflare_sdk import SIGNALS, Host
from dataflare_sdk.fields import json_schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_KINDS = {"source": SourceBlock, "processor": ProcessorBlock, "destination": DestinationBlock}


def workflow_schema(host: Host) -> dict[str, Any]:
    """Return the schema; `with:` is checked by what `use:` names."""
    schema = json_schema(WorkflowBlock)
    properties = schema["properties"]
    nodes = {kind: _node_schema(host, kind, block) for kind, block in _KINDS.items()}
    properties["sources"] = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/source"}}
    properties["processors"] = {"type": "array", "items": {"$ref": "#/$defs/processor"}}
    properties["destinations"] = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/destination"}}
    schema["required"] = ["sources", "destinations"]
    _add_monitors(host, properties)
    return {"$schema": DIALECT, "title": "DataFlare workflow", **schema, "$defs": nodes}


def _add_monitors(host: Host, properties: dict[str, Any]) -> None:
    """Say which monitors can be named for which signal, and which keys they have."""
    observe = properties["observe"]
    block = next((part for part in (observe, *observe.get("anyOf", ())) if "properties" in part), None)
    if block is None:
        return
    for signal in SIGNALS:
        known = {}
        for provided in host.provided("monitor"):
            if signal in provided.features:
                known[provided.name] = _open_null(json_schema(host.factory("monitor", provided.name).Config))
        one: dict[str, Any] = known.get("webhook", {"type": "object"})
        if signal != "webhook":
            keyed = {"type": "object", "minProperties": 1, "maxProperties": 1, "properties": known}
            one = {"anyOf": [{"enum": sorted(known)}, {"type": "string"}, keyed]}
        block["properties"][signal] |= {"anyOf": [one, {"type": "array", "items": one}, {"type": "null"}]}


def _node_schema(host: Host, kind: str, block: type[Any]) -> dict[str, Any]:
    schema = json_schema(block)
    known = []
    for provided in host.provided(kind):
        factory = host.factory(kind, provided.name)
        if hasattr(factory, "Config"):
            known.append((provided.name, provided.summary, json_schema(factory.Config)))
    schema["properties"]["use"] = {
        "type": "string",
        "description": "Name of the plugin.",
        "anyOf": [{"const": name, "description": summary} for name, summary, _ in known] + [{"type": "string"}],
    }
    schema["properties"]["with"] = {"type": ["object", "null"]}
    schema["allOf"] = [
        {"if": {"properties": {"use": {"const": name}}}, "then": {"properties": {"with": _open_null(config)}}} for name, _, config in known
    ]
    return schema


def _open_null(config: dict[str, Any]) -> dict[str, Any]:
    return config if config.get("required") else {"anyOf": [config, {"type": "null"}]}

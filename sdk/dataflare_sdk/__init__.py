"""What a plugin author needs, and all of it: base classes, config fields, Arrow helpers, conformance tests.

Plugins import this package and third-party libraries, never `dataflare` itself: what they need of the kernel
is handed on from here. Names are loaded on first use, so that importing one does not import pyarrow for all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflare.contracts import LETTER_STATES as LETTER_STATES
    from dataflare.contracts import PHASES as PHASES
    from dataflare.contracts import SIGNALS as SIGNALS
    from dataflare.contracts import ActorRef as ActorRef
    from dataflare.contracts import ActorSystem as ActorSystem
    from dataflare.contracts import ArrowBatch as ArrowBatch
    from dataflare.contracts import ArrowSchema as ArrowSchema
    from dataflare.contracts import ArrowStream as ArrowStream
    from dataflare.contracts import Barrier as Barrier
    from dataflare.contracts import Checkpoint as Checkpoint
    from dataflare.contracts import ComponentContext as ComponentContext
    from dataflare.contracts import DeadLetter as DeadLetter
    from dataflare.contracts import DeadLetterStore as DeadLetterStore
    from dataflare.contracts import Decision as Decision
    from dataflare.contracts import EdgeSpec as EdgeSpec
    from dataflare.contracts import End as End
    from dataflare.contracts import Executor as Executor
    from dataflare.contracts import ExtractSpec as ExtractSpec
    from dataflare.contracts import Host as Host
    from dataflare.contracts import Inbox as Inbox
    from dataflare.contracts import Lease as Lease
    from dataflare.contracts import LetterFilter as LetterFilter
    from dataflare.contracts import Loader as Loader
    from dataflare.contracts import LookupSpec as LookupSpec
    from dataflare.contracts import Message as Message
    from dataflare.contracts import NodeSpec as NodeSpec
    from dataflare.contracts import Offset as Offset
    from dataflare.contracts import Opened as Opened
    from dataflare.contracts import Partition as Partition
    from dataflare.contracts import Pause as Pause
    from dataflare.contracts import Plan as Plan
    from dataflare.contracts import Progress as Progress
    from dataflare.contracts import Provided as Provided
    from dataflare.contracts import Reader as Reader
    from dataflare.contracts import RestartPolicy as RestartPolicy
    from dataflare.contracts import RowRejection as RowRejection
    from dataflare.contracts import RunEvent as RunEvent
    from dataflare.contracts import RunHandle as RunHandle
    from dataflare.contracts import RunInfo as RunInfo
    from dataflare.contracts import RunOptions as RunOptions
    from dataflare.contracts import RunReport as RunReport
    from dataflare.contracts import SchemaChange as SchemaChange
    from dataflare.contracts import SecretProvider as SecretProvider
    from dataflare.contracts import StateStore as StateStore
    from dataflare.contracts import StreamInfo as StreamInfo
    from dataflare.contracts import Surroundings as Surroundings
    from dataflare.contracts import Target as Target
    from dataflare.contracts import TaskSpec as TaskSpec
    from dataflare.contracts import Watermark as Watermark
    from dataflare.contracts import WriteSpec as WriteSpec
    from dataflare.errors import CODES as CODES
    from dataflare.errors import DataflareError as DataflareError
    from dataflare.errors import ErrorCode as ErrorCode
    from dataflare.errors import Problem as Problem
    from dataflare.errors import RetriableError as RetriableError
    from dataflare.errors import code as code
    from dataflare.errors import exit_code as exit_code
    from dataflare.hookspecs import hookimpl as hookimpl
    from dataflare.workflow import Marks as Marks
    from dataflare.workflow import Node as Node
    from dataflare.workflow import Workflow as Workflow
    from dataflare.workflow import dotted as dotted
    from dataflare_sdk.changes import Changes as Changes
    from dataflare_sdk.component import Component as Component
    from dataflare_sdk.destination import CopyTarget as CopyTarget
    from dataflare_sdk.destination import Destination as Destination
    from dataflare_sdk.expressions import Attempt as Attempt
    from dataflare_sdk.expressions import Bound as Bound
    from dataflare_sdk.expressions import BoundQuery as BoundQuery
    from dataflare_sdk.expressions import ExpressionEngine as ExpressionEngine
    from dataflare_sdk.expressions import Stage as Stage
    from dataflare_sdk.fields import Duration as Duration
    from dataflare_sdk.fields import NoConfig as NoConfig
    from dataflare_sdk.fields import Query as Query
    from dataflare_sdk.fields import Size as Size
    from dataflare_sdk.fields import Sql as Sql
    from dataflare_sdk.fields import config as config
    from dataflare_sdk.fields import option as option
    from dataflare_sdk.lookup import Lookup as Lookup
    from dataflare_sdk.messages import Batch as Batch
    from dataflare_sdk.messages import Origin as Origin
    from dataflare_sdk.monitor import Monitor as Monitor
    from dataflare_sdk.processor import Processor as Processor
    from dataflare_sdk.rows import RowDestination as RowDestination
    from dataflare_sdk.rows import RowSource as RowSource
    from dataflare_sdk.scan import ScanUnit as ScanUnit
    from dataflare_sdk.scratch import DestinationTwin as DestinationTwin
    from dataflare_sdk.scratch import ScratchPlace as ScratchPlace
    from dataflare_sdk.scratch import SourceTwin as SourceTwin
    from dataflare_sdk.scratch import Writer as Writer
    from dataflare_sdk.source import IteratorReader as IteratorReader
    from dataflare_sdk.source import Source as Source

_HOME = {
    "dataflare.contracts": (
        "LETTER_STATES PHASES SIGNALS ActorRef ActorSystem ArrowBatch ArrowSchema ArrowStream Barrier Checkpoint "
        "ComponentContext DeadLetter DeadLetterStore Decision EdgeSpec End Executor ExtractSpec Host Inbox Lease LetterFilter Loader "
        "LookupSpec Message NodeSpec Offset Opened Partition Pause Plan Progress Provided Reader RestartPolicy RowRejection RunEvent "
        "RunHandle RunInfo RunOptions RunReport SchemaChange SecretProvider StateStore StreamInfo Surroundings Target TaskSpec "
        "Watermark WriteSpec"
    ),
    "dataflare.errors": "CODES DataflareError ErrorCode Problem RetriableError code exit_code",
    "dataflare.hookspecs": "hookimpl",
    "dataflare.workflow": "Marks Node Workflow dotted",
    "dataflare_sdk.changes": "Changes",
    "dataflare_sdk.component": "Component",
    "dataflare_sdk.destination": "CopyTarget Destination",
    "dataflare_sdk.expressions": "Attempt Bound BoundQuery ExpressionEngine Stage",
    "dataflare_sdk.fields": "Duration NoConfig Query Size Sql config option",
    "dataflare_sdk.lookup": "Lookup",
    "dataflare_sdk.messages": "Batch Origin",
    "dataflare_sdk.monitor": "Monitor",
    "dataflare_sdk.processor": "Processor",
    "dataflare_sdk.rows": "RowDestination RowSource",
    "dataflare_sdk.scan": "ScanUnit",
    "dataflare_sdk.scratch": "DestinationTwin ScratchPlace SourceTwin Writer",
    "dataflare_sdk.source": "IteratorReader Source",
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll] - the table above is the one list


def __getattr__(name: str) -> Any:
    """Load a public name from the room it lives in."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)

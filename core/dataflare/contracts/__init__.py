"""Contracts: the Protocols and small records that hooks and components speak in.

Nothing here knows Arrow, SQL or threads. Data is named by the Arrow C data interface's own methods, so
that any library that speaks it will do. One file per role; this module hands all of them on.
"""

from dataflare.contracts.actors import ActorRef, ActorSystem, Inbox, RestartPolicy
from dataflare.contracts.batch import (
    ArrowBatch,
    ArrowSchema,
    ArrowStream,
    Barrier,
    Batch,
    End,
    Message,
    Offset,
    Pause,
    RowRejection,
    SchemaChange,
    Watermark,
)
from dataflare.contracts.component import Component, ComponentContext, RunInfo
from dataflare.contracts.destination import Destination, Opened, Target, WriteSpec
from dataflare.contracts.executor import (
    EdgeSpec,
    Executor,
    NodeSpec,
    Plan,
    RunHandle,
    RunOptions,
    RunReport,
    TaskSpec,
)
from dataflare.contracts.host import Host, Provided, Surroundings
from dataflare.contracts.isolation import Loader
from dataflare.contracts.lookup import Lookup, LookupSpec
from dataflare.contracts.monitor import PHASES, SIGNALS, Monitor, Observers, RunEvent
from dataflare.contracts.processor import Processor, Progress
from dataflare.contracts.security import Decision, SecretProvider
from dataflare.contracts.source import ExtractSpec, Partition, Reader, Source, StreamInfo
from dataflare.contracts.state import LETTER_STATES, Checkpoint, DeadLetter, DeadLetterStore, Lease, LetterFilter, StateStore

__all__ = [
    "LETTER_STATES",
    "PHASES",
    "SIGNALS",
    "ActorRef",
    "ActorSystem",
    "ArrowBatch",
    "ArrowSchema",
    "ArrowStream",
    "Barrier",
    "Batch",
    "Checkpoint",
    "Component",
    "ComponentContext",
    "DeadLetter",
    "DeadLetterStore",
    "Decision",
    "Destination",
    "EdgeSpec",
    "End",
    "Executor",
    "ExtractSpec",
    "Host",
    "Inbox",
    "Lease",
    "LetterFilter",
    "Loader",
    "Lookup",
    "LookupSpec",
    "Message",
    "Monitor",
    "NodeSpec",
    "Observers",
    "Offset",
    "Opened",
    "Partition",
    "Pause",
    "Plan",
    "Processor",
    "Progress",
    "Provided",
    "Reader",
    "RestartPolicy",
    "RowRejection",
    "RunEvent",
    "RunHandle",
    "RunInfo",
    "RunOptions",
    "RunReport",
    "SchemaChange",
    "SecretProvider",
    "Source",
    "StateStore",
    "StreamInfo",
    "Surroundings",
    "Target",
    "TaskSpec",
    "Watermark",
    "WriteSpec",
]

"""A state store that came from outside: one JSON document, replaced whole at every write, and a lock file beside it."""

import base64
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dataflare_sdk import Checkpoint, Component, DeadLetter, Lease, config, option, platform
from dataflare_sdk.atomic import make_folder, read_record, write_record
from dataflare_sdk.fence import FENCED
from dataflare_sdk.offsets import written
from dataflare_sdk.state_sql import BUSY, DAMAGED

EMPTY = {"id": "", "fence": 0, "checkpoints": [], "letters": []}


@config
class JsonStateConfig:
    """Where the state lies."""

    path: str = option("A folder.", default=".dataflare/json-state")


class JsonState(Component[JsonStateConfig]):
    """Implements `dataflare_sdk.StateStore`. Small on purpose: every write writes all of it."""

    Config = JsonStateConfig

    def __init__(self, config: JsonStateConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._folder = Path(ctx.base_dir) / config.path
        self._lease: Lease | None = None
        self._lock: Any = None

    # -- the document ------------------------------------------------------------------------------------

    def _load(self) -> dict[str, Any]:
        return read_record(self._folder / "state.json") or {"workflows": {}, "runs": {}, "values": {}, "letter": 0}

    def _change(self, act: Callable[[dict[str, Any]], Any]) -> Any:
        make_folder(self._folder)
        with (self._folder / "write.lock").open("a+") as lock:
            while not platform.lock_file(lock):
                time.sleep(0.001)
            document = self._load()
            made = act(document)
            write_record(self._folder / "state.json", document)
            return made

    def _of(self, document: dict[str, Any], workflow: str) -> dict[str, Any]:
        return document["workflows"].setdefault(workflow, {**EMPTY, "checkpoints": [], "letters": []})

    def _mine(self, document: dict[str, Any]) -> dict[str, Any]:
        assert self._lease is not None, "acquire comes first"
        found = self._of(document, self._lease.workflow)
        if found["fence"] != self._lease.fence:
            raise FENCED.error(f"'{self._lease.workflow}' was taken over (fence {found['fence']}, this run has {self._lease.fence})")
        return found

    # -- lease -------------------------------------------------------------------------------------------

    def acquire(self, workflow: str, take_over: bool = False) -> Lease:
        """Lock the workflow and raise its fence."""
        self.release()
        make_folder(self._folder)
        lock = (self._folder / f"{_name(workflow)}.lock").open("a+")
        if not platform.lock_file(lock) and not take_over:
            lock.seek(0)
            holder = lock.read()
            lock.close()
            raise BUSY.error(f"'{workflow}' is being run by {holder}")
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        self._lock = lock

        def raised(document: dict[str, Any]) -> Lease:
            found = self._of(document, workflow)
            found["id"] = found["id"] or secrets.token_hex(8)
            found["fence"] += 1
            return Lease(workflow, found["id"], found["fence"])

        self._lease = self._change(raised)
        return self._lease

    def fence(self, workflow: str) -> int:
        """Return the newest fence of a workflow."""
        return int(self._load()["workflows"].get(workflow, EMPTY)["fence"])

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def holder(self, workflow: str) -> str | None:
        """Return who runs the workflow now."""
        path = self._folder / f"{_name(workflow)}.lock"
        if not path.exists():
            return None
        with path.open("a+") as lock:
            if platform.lock_file(lock):
                return None
            lock.seek(0)
            return lock.read()

    # -- epochs ------------------------------------------------------------------------------------------

    def load(self, workflow: str) -> Checkpoint | None:
        """Return the newest checkpoint."""
        return next(iter(self.history(workflow)), None)

    def history(self, workflow: str) -> Sequence[Checkpoint]:
        """Return the checkpoints that are kept, newest first."""
        return [Checkpoint(**c) for c in self._load()["workflows"].get(workflow, EMPTY)["checkpoints"]]

    def log(self, checkpoint: Checkpoint, letters: Sequence[DeadLetter] = ()) -> None:
        """Keep an epoch and its dead letters; of one that was logged before they take its place."""

        def logged(document: dict[str, Any]) -> None:
            mine = self._mine(document)
            same = (checkpoint.run_id, checkpoint.epoch)
            rest = [c for c in mine["checkpoints"] if (c["run_id"], c["epoch"]) != same]
            mine["checkpoints"] = [asdict(replace(checkpoint, saved_at=time.time())), *rest][:3]
            mine["letters"] = [x for x in mine["letters"] if (x["run_id"], x["epoch"]) != same]
            for letter in letters:
                document["letter"] += 1
                mine["letters"].append(
                    {**asdict(letter), "id": str(document["letter"]), "saved_at": time.time(), "epoch": checkpoint.epoch}
                )

        self._change(logged)

    def done(self, epoch: int, *, finished: Mapping[str, Any] | None = None) -> None:
        """Mark the newest epoch committed everywhere."""

        def marked(document: dict[str, Any]) -> None:
            newest = self._mine(document)["checkpoints"][0]
            newest["done"] = True
            if finished is not None:
                document["runs"].setdefault(newest["run_id"], {}).update(finished)

        self._change(marked)

    def put(self, data: bytes) -> str:
        """Keep a chunk under the hash of its content."""
        ref = hashlib.sha256(data).hexdigest()
        (self._folder / ref).write_bytes(data)
        platform.fsync_file(self._folder / ref)
        return f"chunk:{ref}"

    def get(self, ref: str) -> bytes:
        """Return a chunk."""
        path = self._folder / ref.removeprefix("chunk:")
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != path.name:
            raise DAMAGED.error(f"the chunk {ref} is damaged")
        return data

    # -- runs, letters, values ---------------------------------------------------------------------------

    def begin_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Record that a run began."""
        assert self._lease is not None
        began = {**record, "run_id": run_id, "workflow": self._lease.workflow, "status": "running", "started_at": time.time()}
        self._change(lambda document: document["runs"].update({run_id: began}))

    def end_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Record how a run ended."""
        self._change(lambda document: document["runs"].setdefault(run_id, {}).update(record, ended_at=time.time()))

    def runs(self, workflow: str | None = None, limit: int = 50) -> Sequence[Mapping[str, Any]]:
        """Return run records, newest first."""
        found = [r for r in self._load()["runs"].values() if workflow in (None, r.get("workflow"))]
        return found[::-1][:limit]

    def letters(self, workflow: str, run_id: str | None = None, limit: int | None = None) -> Sequence[DeadLetter]:
        """Return dead letters of committed epochs."""
        held = self._load()["workflows"].get(workflow, EMPTY)
        open_epochs = {(c["run_id"], c["epoch"]) for c in held["checkpoints"] if not c["done"]}
        found = [x for x in held["letters"] if run_id in (None, x["run_id"]) and (x["run_id"], x["epoch"]) not in open_epochs]
        return [DeadLetter(**{k: v for k, v in x.items() if k != "epoch"}) for x in found][:limit]

    def reset(self, workflow: str, stream: str | None = None) -> int:
        """Forget checkpoints; of one source is not offered here."""

        def forgotten(document: dict[str, Any]) -> int:
            found = self._of(document, workflow)
            count, found["checkpoints"] = len(found["checkpoints"]), []
            return count

        return int(self._change(forgotten))

    def set_offset(self, workflow: str, stream: str, offset: Mapping[str, Any]) -> None:
        """Set the offset the next run of a source starts from."""
        newest = self.load(workflow)
        self.put_value(f"offset:{workflow}", stream, written(offset, newest.run_id if newest else None))

    def get_value(self, scope: str, key: str) -> bytes | None:
        """Return a value."""
        found = self._load()["values"].get(f"{scope}\n{key}")
        return None if found is None else base64.b64decode(found)

    def put_value(self, scope: str, key: str, value: bytes | None) -> None:
        """Keep a value; None removes it."""

        def changed(document: dict[str, Any]) -> None:
            if value is None:
                document["values"].pop(f"{scope}\n{key}", None)
            else:
                document["values"][f"{scope}\n{key}"] = base64.b64encode(value).decode()

        self._change(changed)

    def close(self) -> None:
        """Give the lock back."""
        self.release()


def _name(workflow: str) -> str:
    return hashlib.sha256(workflow.encode()).hexdigest()[:16]

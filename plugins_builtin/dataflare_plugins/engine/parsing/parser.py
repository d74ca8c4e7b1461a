"""WorkflowParser: from a file, with profile, flags and parameters, to the workflow model."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflare_plugins.engine.parsing.document import SYNTAX, Document
from dataflare_plugins.engine.parsing.model import ModelMaker
from dataflare_plugins.engine.parsing.params import resolve_params
from dataflare_plugins.engine.parsing.scalars import resolve_plain
from dataflare_plugins.engine.places import parse_path
from dataflare_sdk import CODES, Component, DataflareError, NoConfig, Problem, Workflow, code
from dataflare_sdk.fields import documented, nearest
from dataflare_sdk.settings import merge, substitute

NOT_A_FILE = code("workflow.not-a-file", 4, "The workflow is no file that can be read.", "Give the path of a workflow file.")
ENCODING = code("workflow.encoding", 3, "The workflow file is not UTF-8.", "Save it as UTF-8.")
EMPTY = code("workflow.empty", 3, "The workflow file holds no mapping.", "Begin with `dataflare init`.")
UNKNOWN_PROFILE = code("workflow.unknown-profile", 3, "The profile is not in the file.", "Use a profile the file has.")
MAX_BYTES = 16 << 20

ENVIRONMENT = {
    f"DATAFLARE_{'_'.join(path).upper()}": path
    for path in (
        ("runtime", "lane"), ("runtime", "memory"), ("runtime", "threads"), ("runtime", "batch", "rows"),
        ("runtime", "batch", "bytes"), ("errors", "on_record"), ("state", "path"),
    )
}  # fmt: skip
"""Environment variables that stand over file and profile, and under flags."""


class WorkflowParser(Component[NoConfig]):
    """Reads workflow files; every problem carries file, line and column."""

    Config = NoConfig

    def parse(
        self,
        source: str | Path | Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
        profile: str | None = None,
        flags: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Workflow:
        """Return the model of a workflow.

        Args:
            source: a file, or the document itself.
            params: values of parameters; text is read as the type the file declares.
            profile: name of a profile to lay over the file.
            flags: dotted keys to values, strongest of all: `runtime.lane`.
            env: the environment, `os.environ` by default.

        Raises:
            DataflareError: `workflow.*` and `config.*`, all problems at once.
        """
        known = os.environ if env is None else env
        if isinstance(source, Mapping):
            base, file, stem = Path.cwd(), None, "workflow"
            document = Document(merge(source))
        else:
            path = Path(source)
            base, file, stem = path.absolute().parent, str(source), path.name.partition(".")[0]
            document = self.load(path)
        try:
            return self._made(document, file, stem, base, params or {}, profile, flags or {}, known)
        except DataflareError as error:
            blank = Workflow(name=stem, nodes=(), file=file, marks=document.marks)
            raise DataflareError(*(_placed(p, blank) for p in error.problems)) from error.__cause__

    def load(self, path: Path) -> Document:
        """Read a file by its type.

        Raises:
            DataflareError: `workflow.not-a-file`, `world.missing-input`, `workflow.encoding`, `workflow.syntax`.
        """
        text = read_text(path)
        try:
            return self.load_text(path, text)
        except DataflareError as error:
            raise error.located(file=str(path)) from error.__cause__

    def load_text(self, path: Path, text: str) -> Document:
        """Read the text of a file; plugins that know its type are asked first."""
        if self.ctx.host is not None:
            answer = self.ctx.host.hook("parse_workflow", path=path, text=text)
            if answer is not None:
                return Document(answer["document"], dict(answer.get("marks", {})))
        if path.suffix == ".json":
            from dataflare_plugins.engine.parsing.json_loader import load_json

            return load_json(text)
        from dataflare_plugins.engine.parsing.yaml_loader import load_yaml

        return load_yaml(text)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of workflow files, with the plugins that are installed."""
        from dataflare_plugins.engine.parsing.schema import workflow_schema

        assert self.ctx.host is not None
        return workflow_schema(self.ctx.host)

    def format_text(self, text: str) -> str:
        """Return a workflow's YAML in canonical order and spacing, saying the same."""
        from dataflare_plugins.engine.parsing.text import format_text

        return format_text(text)

    def migrate_text(self, text: str) -> tuple[str, list[str]]:
        """Return a workflow's YAML in the newest format, and what was changed."""
        from dataflare_plugins.engine.parsing.text import migrate_text

        return migrate_text(text)

    def defaults(self) -> dict[str, Any]:
        """Return what holds when nobody says anything."""
        return settings_defaults()

    def layers(
        self, source: str | Path, profile: str | None = None, flags: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
    ) -> list[tuple[str, Mapping[str, Any]]]:
        """Return what each layer says, weakest first, as (origin, values): for `config explain`."""
        document = self.load(Path(source)).value or {}
        known = os.environ if env is None else env
        found: list[tuple[str, Mapping[str, Any]]] = [(str(source), {k: v for k, v in document.items() if k not in ("profiles", *NODES)})]
        if profile is not None:
            found.append((f"profile {profile}", self._profile(document, profile)))
        found += [(name, _nested({path: resolve_plain(known[name])})) for name, path in ENVIRONMENT.items() if name in known]
        return [*found, *([("flag", _nested({tuple(k.split(".")): v for k, v in flags.items()}))] if flags else [])]

    def _made(
        self, document: Document, file: str | None, stem: str, base: Path, given: Mapping[str, Any],
        profile: str | None, flags: Mapping[str, Any], env: Mapping[str, str],
    ) -> Workflow:  # fmt: skip
        raw = document.value
        if not isinstance(raw, Mapping) or not raw:
            raise EMPTY.error("the file holds no mapping")
        if profile is not None:
            raw = merge(raw, self._profile(raw, profile))
            # What a profile says stands where the profile says it.
            for path, mark in list(document.marks.items()):
                if path[:2] == ("profiles", profile) and len(path) > 2:
                    document.marks[path[2:]] = mark
        over: dict[tuple[str, ...], Any] = {path: resolve_plain(env[name]) for name, path in ENVIRONMENT.items() if name in env}
        over.update({tuple(k.split(".")): v for k, v in flags.items()})
        raw = merge(raw, _nested(over))
        values = resolve_params(raw.get("params"), given)
        keep = {k: raw[k] for k in ("params", "profiles") if k in raw}
        raw = {**substitute({k: v for k, v in raw.items() if k not in keep}, env, values), **keep}
        return ModelMaker(raw, document.marks, file, str(base), stem, values, self._features).make()

    def _features(self, use: str) -> Collection[str]:
        """Return what a source can do, from its manifest; nothing where there is none of that name."""
        if self.ctx.host is None:
            return ()
        try:
            return self.ctx.host.describe("source", use).features
        except DataflareError:
            return ()

    def _profile(self, raw: Mapping[str, Any], profile: str) -> Mapping[str, Any]:
        profiles = raw.get("profiles")
        names = list(profiles) if isinstance(profiles, Mapping) else []
        if not isinstance(profiles, Mapping) or profile not in profiles:
            near = nearest(profile, names)
            fix = f"did you mean '{near}'?" if near else f"the profiles are {', '.join(names) or 'none'}"
            raise UNKNOWN_PROFILE.error(f"there is no profile '{profile}'", fix=fix, path="profiles")
        chosen = profiles[profile]
        return chosen if isinstance(chosen, Mapping) else {}


def settings_defaults() -> dict[str, Any]:
    """Return the defaults of every setting of a workflow, as nested values in the units people write."""
    from dataflare_plugins.engine.parsing.blocks import BatchSize, Checkpoint, Errors, Observe, Retry, RuntimeBlock, State

    def told(kind: type[Any], **inner: Any) -> dict[str, Any]:
        return {**{f.name: f.default for f in documented(kind) if not isinstance(f.default, (dict, list))}, **inner}

    return {
        "errors": told(Errors, retry=told(Retry)),
        "state": told(State, path=".dataflare/state.db", checkpoint=told(Checkpoint)),
        "runtime": told(RuntimeBlock, batch=told(BatchSize)),
        "observe": told(Observe),
        "timezone": "UTC",
    }


NODES = ("sources", "processors", "destinations", "params")


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataflareError: `world.missing-input`, `world.permission`, `workflow.not-a-file`, `workflow.encoding`.
    """
    try:
        raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except FileNotFoundError:
        raise CODES["world.missing-input"].error(
            f"the file '{path}' does not exist", fix="Give the path of a workflow, or make one with `dataflare init`.", file=str(path)
        ) from None
    except PermissionError:
        raise CODES["world.permission"].error(f"the file '{path}' may not be read", file=str(path)) from None
    except (OSError, ValueError) as error:
        raise NOT_A_FILE.error(f"'{path}' is no file that can be read: {error}", file=str(path)) from None
    if raw is None:
        raise SYNTAX.error(f"it is larger than {MAX_BYTES >> 20} MiB", file=str(path))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise ENCODING.error("a byte is no UTF-8", file=str(path), line=line, column=column) from None


def _nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path, value in values.items():
        here = made
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
    return made


def _placed(problem: Problem, workflow: Workflow) -> Problem:
    """Give a problem that has only a path its line and column."""
    if problem.line is not None:
        return problem if problem.file is not None else replace(problem, file=workflow.file)
    place = workflow.place(*parse_path(problem.path))
    return replace(problem, file=place["file"], line=place["line"], column=place["column"])

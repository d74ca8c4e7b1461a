"""The runtime: everything between a workflow file and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dataflare.capabilities import Policy
from dataflare.config import Configuration, config_dir
from dataflare.contracts import Plan, RunOptions, RunReport
from dataflare.discovery import Found, discover
from dataflare.errors import INTERNAL, IO_FAILED, DataflareError, Problem, exit_code
from dataflare.host import RuntimeHost
from dataflare.logs import LEVELS, Logs, Redactor
from dataflare.phases import Phases
from dataflare.plugins import PluginManager
from dataflare.records import record
from dataflare.registry import Registry
from dataflare.workflow import Workflow

if TYPE_CHECKING:
    from dataflare.contracts import RunHandle

__all__ = ["Runtime", "Validation"]


@record
class Validation:
    """What `validate` found.

    Attributes:
        problems: errors and notes.
        plan: the plan, None when there is none because of errors.
    """

    problems: tuple[Problem, ...]
    plan: Plan | None

    @property
    def valid(self) -> bool:
        """Whether there is no error; notes do not count."""
        return exit_code(list(self.problems)) == 0


class Runtime:
    """Everything between a workflow file and its end; a context manager.

    Args:
        base_dir: folder of the workflow, for configuration, policy and secrets beside it.
        flags: settings from the command line: dotted keys of the runtime's own (`log.level`), and whatever
            else the workflow's parser takes (`runtime.lane`).
        profile: name of a profile, of the workflow and of the configuration files.
        env: the environment, `os.environ` by default.
        log_sink: text stream for log records; None, as in a library: none are written.
        found: the plugins, by default those that are installed.

    Raises:
        DataflareError: `config.*`, `policy.invalid`.
    """

    def __init__(
        self,
        base_dir: str | Path = ".",
        flags: Mapping[str, Any] | None = None,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        *,
        log_sink: TextIO | None = None,
        found: Found | None = None,
    ) -> None:
        from dataflare.config import KNOWN

        self.base_dir = Path(base_dir)
        self.profile = profile
        own = {k: v for k, v in (flags or {}).items() if k in KNOWN}
        self.flags = {k: v for k, v in (flags or {}).items() if k not in KNOWN}
        self.config = Configuration.load(self.base_dir, profile=profile, flags=own, env=env)
        self.found = discover() if found is None else found
        self.redactor = Redactor()
        self.logs = Logs(self.redactor, self.config.get("log.level"), log_sink, json=self.config.get("log.json"))
        policy = Policy.load(self.base_dir, config_dir(env))
        registry = Registry(self.found.manifests, self.config.get("plugins.prefer"))
        self.plugins = PluginManager(registry, policy)
        self.host = RuntimeHost(self.plugins, self.logs, self.base_dir, self.config.get("secrets.providers"))

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload every plugin and end the log."""
        self.plugins.close()
        self.logs.close()

    def parse(
        self,
        source: str | Path | Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
        profile: str | None = None,
    ) -> Workflow:
        """Read a workflow file, or take a document as a mapping.

        Raises:
            DataflareError: `workflow.*`, `config.*`, with file, line and column.
        """
        with self._built("parser", "workflow") as parser:
            made: Workflow = parser.parse(source, params=params or {}, profile=profile or self.profile, flags=self.flags)
        return made

    def validate(
        self,
        workflow: Workflow,
        strict: bool = False,
        offline: bool = True,
        *,
        inputs: Mapping[str, Any] | None = None,
        until: str | None = None,
        collect: Sequence[str] = (),
    ) -> Validation:
        """Check a workflow and plan it; nothing is raised for what is wrong with the file.

        Args:
            workflow: the model.
            strict: what cannot be known offline is an error.
            offline: touch nothing but local files.
            inputs: source id to Arrow data that stands in for it.
            until: plan only what leads to this node, or output of one (`paid.else`).
            collect: nodes or outputs whose rows are wanted, with all their columns.
        """
        with self._built("validator", "workflow") as validator:
            problems, plan = validator.validate(workflow, strict=strict, offline=offline, inputs=inputs, until=until, collect=collect)
        try:
            for found in self.host.hook("check_workflow", workflow=workflow, plan=plan):
                problems = [*problems, *found]
        except DataflareError as error:
            problems = [*problems, *error.problems]
        except Exception as error:
            problems = [*problems, INTERNAL.problem(f"a check of the workflow failed: {error!r}")]
        plan = plan if exit_code(list(problems)) == 0 else None
        return Validation(tuple(problems), plan)

    def run(
        self,
        source: str | Path | Mapping[str, Any] | Workflow,
        options: RunOptions | None = None,
        params: Mapping[str, Any] | None = None,
        profile: str | None = None,
        on_start: Callable[[RunHandle], None] | None = None,
    ) -> RunReport:
        """Run a workflow through all six phases; whatever fails, the last one is `clean_up`.

        Args:
            source: a file, a document, or a workflow that was parsed before.
            options: how this run was asked for.
            params: parameters of the workflow.
            profile: profile of the workflow.
            on_start: told the handle of the run as soon as there is one, to cancel it by.

        Returns:
            The report; a failure is in it, not raised. `document` is what `run --json` prints.
        """
        return Phases(self, options or RunOptions(), on_start).go(source, params, profile)

    def refused(self, error: DataflareError) -> RunReport:
        """Return the report of a run that could not begin, as `run` would have returned it."""
        run = Phases(self, RunOptions(), None)
        run.fail(error)
        return run.report()

    def authorize(self, action: str, resource: str) -> None:
        """Ask the security providers the configuration names.

        Raises:
            DataflareError: `security.denied`.
        """
        from dataflare.security import authorize

        authorize(self.plugins, self.config, action, resource)

    def obey(self, workflow: Workflow) -> None:
        """Take the log that a workflow asks for, where no stronger layer said anything, and name it in the log.

        Raises:
            DataflareError: `world.io`: its file cannot be written.
        """
        self.host.workflow = workflow.name
        given = workflow.settings.get("observe")
        observe: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        said = {key: found["origin"] != "default" for key, found in self.config.explain().items()}
        file = self.config.get("log.file") if said["log.file"] else observe.get("log_file")
        if file:
            path = Path(workflow.base_dir) / file
            try:
                self.logs.to_file(path)
            except OSError as error:
                raise IO_FAILED.error(f"the log cannot be written: {error.strerror}", file=str(path), path="observe.log_file") from error
        if observe.get("log") in LEVELS and not said["log.level"]:
            self.logs.level = observe["log"]
        if observe.get("log_format") and not said["log.json"]:
            self.logs.json = observe["log_format"] == "json"

    @contextmanager
    def _built(self, kind: str, name: str) -> Iterator[Any]:
        made = self.host.build(kind, name, {})
        try:
            yield made
        finally:
            close = getattr(made, "close", None)
            if close is not None:
                close()

"""Configuration: values in layers, each remembering where it came from, and `${env:…}` and `${param:…}`.

Precedence, later wins: defaults < file < profile < environment < flag. The runtime's own settings are in
`KNOWN`; a workflow's blocks are layered the same way by its parser, with `merge` and `explain` from here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dataflare.errors import CONFIG_INVALID, CONFIG_UNKNOWN_KEY, DataflareError, Problem, code
from dataflare.index import user_folder

if TYPE_CHECKING:
    from typing import Self

__all__ = ["KNOWN", "Configuration", "Layer", "Referring", "Substituted", "explain", "hide", "merge", "reveal", "substitute"]

UNSET = code(
    "config.unset-variable",
    3,
    "`${env:NAME}` names an environment variable that is not set.",
    "Set it, or write `${env:NAME:-default}`.",
)
UNKNOWN_PARAM = code(
    "config.unknown-param",
    3,
    "`${param:NAME}` names a parameter that does not exist.",
    "Declare it under `params:`.",
)
FILE_INVALID = code("config.bad-file", 3, "A configuration file cannot be read.", "Mend the file named.")

KNOWN: dict[str, Any] = {
    "log.level": "warning",
    "log.json": False,
    "log.file": "",
    "plugins.prefer": {},
    "secrets.providers": ["env", "file"],
    "security.authenticate": [],
    "security.authorize": [],
}
"""Every setting of the runtime with its default; the default's type is the type it must have."""


class Referring(str):
    """Text with something of the environment in it, which may be a password.

    Attributes:
        reference: as it stood in the file, `postgresql://app:${env:PASSWORD}@db/shop`: what documents hold; "" where nothing is hidden.
    """

    __slots__ = ("reference",)
    reference: str

    def __new__(cls, text: object = "", reference: str = "") -> Self:
        """Make the text."""
        made = super().__new__(cls, text)
        made.reference = reference
        return made


class Substituted(Referring):
    """Text that came out of `${…}`: typed by the field it stands in, unlike text a person quoted."""

    __slots__ = ()


class Layer(NamedTuple):
    """Values from one place.

    Attributes:
        origin: where they came from, for people: `default`, a file, `profile edge`, `DATAFLARE_LOG_LEVEL`, `flag`.
        values: nested mappings, or dotted keys.
    """

    origin: str
    values: Mapping[str, Any]


class Configuration:
    """The runtime's settings.

    Args:
        layers: from weakest to strongest; `KNOWN` lies under all of them.

    Raises:
        DataflareError: `config.unknown-key`, `config.invalid`, naming the layer.
    """

    def __init__(self, layers: Iterable[Layer] = ()) -> None:
        self.layers = [Layer("default", KNOWN), *layers]
        problems = [p for layer in self.layers for p in _check(layer)]
        if problems:
            raise DataflareError(*problems)

    @classmethod
    def load(
        cls,
        base_dir: Path,
        *,
        profile: str | None = None,
        flags: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Configuration:
        """Read the user's file, the one beside the workflow, the profile, the environment and the flags.

        Args:
            base_dir: folder of the workflow; its file is `.dataflare/config.yaml`.
            profile: name of an entry of the files' `profiles:`; a file without it says nothing.
            flags: dotted keys from the command line.
            env: the environment, `os.environ` by default; `DATAFLARE_LOG_LEVEL` is `log.level`.

        Raises:
            DataflareError: `config.*`.
        """
        files = [_read_file(p) for p in (config_dir(env) / "config.yaml", base_dir / ".dataflare" / "config.yaml")]
        plain = [Layer(f.origin, {k: v for k, v in f.values.items() if k != "profiles"}) for f in files]
        chosen = [
            Layer(f"profile {profile} in {f.origin}", f.values["profiles"][profile])
            for f in files
            if profile is not None and profile in f.values.get("profiles", {})
        ]
        return cls([*plain, *chosen, *_environment(os.environ if env is None else env), Layer("flag", flags or {})])

    def get(self, key: str) -> Any:
        """Return a setting by its dotted key."""
        return self.explain()[key]["value"]

    def explain(self) -> dict[str, dict[str, Any]]:
        """Return dotted key to `{"value", "origin", "overrides": [{"value", "origin"}]}`."""
        return explain(self.layers, whole=KNOWN)


def explain(layers: Iterable[Layer], whole: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Lay values over each other and say where each one came from.

    Args:
        layers: from weakest to strongest.
        whole: dotted keys whose value is one value even when it is a mapping.

    Returns:
        Dotted key to its value, its origin and what it overrides, strongest first.
    """
    said: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        for key, value in _flat(layer.values, frozenset(whole)):
            said.setdefault(key, []).insert(0, {"value": value, "origin": layer.origin})
    return {key: {**first, "overrides": rest} for key, (first, *rest) in sorted(said.items())}


def merge(*values: Mapping[str, Any]) -> dict[str, Any]:
    """Lay mappings over each other, deeply; later wins, lists are replaced whole."""
    made: dict[str, Any] = {}
    for layer in values:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
            made[key] = merge(made[key], value) if both else value
    return made


_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<kind>env|param):(?P<name>[^}:]*)(?P<default>:-[^}]*)?\}")


def substitute(value: Any, env: Mapping[str, str], params: Mapping[str, Any], path: tuple[str | int, ...] = ()) -> Any:
    """Return a document with `${env:NAME}`, `${env:NAME:-default}` and `${param:NAME}` replaced in its scalars.

    A scalar that is one reference becomes the parameter itself, or for text `Substituted`, typed later by the
    field it stands in. Inside other text a reference becomes text. `$${` becomes `${`; `${secret:…}` stays, and
    so does everything in keys.

    Args:
        value: the parsed document or a part of it.
        env: the environment.
        params: the parameters with their values.
        path: where `value` stands in the document.

    Raises:
        DataflareError: `config.unset-variable` and `config.unknown-param`, all of them at once.
    """
    problems: list[Problem] = []
    made = _substitute(value, env, params, path, problems)
    if problems:
        raise DataflareError(*problems)
    return made


def _substitute(
    value: Any,
    env: Mapping[str, str],
    params: Mapping[str, Any],
    path: tuple[str | int, ...],
    problems: list[Problem],
) -> Any:
    if isinstance(value, Mapping):
        return {k: _substitute(v, env, params, (*path, str(k)), problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_substitute(v, env, params, (*path, i), problems) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def look_up(found: re.Match[str]) -> Any:
        if found["kind"] is None:
            return "${"
        try:
            return _look_up(found["kind"], found["name"], found["default"], env, params)
        except DataflareError as error:
            from dataflare.workflow import dotted

            problems.extend(error.located(path=dotted(path)).problems)
            return ""

    whole = _REFERENCE.fullmatch(value)
    if whole and whole["kind"]:
        made = look_up(whole)
        return Substituted(made, value if whole["kind"] == "env" else "") if isinstance(made, str) else made
    text = _REFERENCE.sub(lambda found: _text(look_up(found)), value)
    if all(found["kind"] != "env" for found in _REFERENCE.finditer(value)):
        return text
    # Parameters are no secrets, and are not there when the reference is read again.
    kept = _REFERENCE.sub(lambda found: _escaped(_text(look_up(found))) if found["kind"] == "param" else found[0], value)
    return Referring(text, kept)


_HIDDEN = 8
"""Characters from which on a value of the environment is looked for in other texts too: shorter ones stand anywhere by chance."""


def hide(value: Any) -> Any:
    """Return a document in which what came from the environment is written as it stood in the file; `reveal` takes it back.

    Args:
        value: mappings, lists and scalars.
    """
    found: dict[str, str] = {}
    _references(value, found)
    longest = sorted((text for text in found if len(text) >= _HIDDEN), key=len, reverse=True)
    return _hidden(value, [(_escaped(text), found[text]) for text in longest])


def reveal(value: Any, env: Mapping[str, str]) -> Any:
    """Return a document that `hide` wrote with the environment in it.

    Raises:
        DataflareError: `config.unset-variable`.
    """
    return substitute(value, env, {})


def _references(value: Any, found: dict[str, str]) -> None:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        if isinstance(value, Referring) and value.reference:
            found[str(value)] = value.reference
        return
    for inner in value:
        _references(inner, found)


def _hidden(value: Any, known: Sequence[tuple[str, str]]) -> Any:
    if isinstance(value, Mapping):
        return {k: _hidden(v, known) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(v, known) for v in value]
    if not isinstance(value, str):
        return value
    if isinstance(value, Referring) and value.reference:
        return value.reference
    text = _escaped(value)
    for secret, reference in known:
        text = text.replace(secret, reference)
    return text


def _escaped(text: str) -> str:
    """Write text so that `substitute` gives it back as it is; references to secrets it leaves alone anyway."""
    return re.sub(r"\$\{(?!secret:)", "$${", str(text))


def _look_up(kind: str, name: str, default: str | None, env: Mapping[str, str], params: Mapping[str, Any]) -> Any:
    known: Mapping[str, Any] = env if kind == "env" else params
    # As in a shell, `:-` also stands in for a variable that is set to nothing.
    if name in known and not (default is not None and known[name] == ""):
        return known[name]
    if default is not None:
        return default[2:]
    if kind == "env":
        raise UNSET.error(f"the environment variable {name!r} is not set")
    import difflib

    near = difflib.get_close_matches(name, list(params), 1)
    raise UNKNOWN_PARAM.error(f"there is no parameter {name!r}", fix=f"did you mean {near[0]!r}?" if near else None)


def _text(value: Any) -> str:
    """Write a value inside other text the way YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def config_dir(env: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the user's own configuration, `~/.config/dataflare`."""
    if env is None:
        return Path(user_folder("XDG_CONFIG_HOME", ".config"))
    return Path(env.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dataflare"


def _read_file(path: Path) -> Layer:
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Layer(str(path), {})
    except (OSError, UnicodeDecodeError) as error:
        raise FILE_INVALID.error(f"it cannot be read: {error}", file=str(path)) from None
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or "it is no YAML"
        raise FILE_INVALID.error(f"it cannot be read: {reason}", file=str(path)) from None
    if not isinstance(found, (dict, type(None))):
        raise FILE_INVALID.error("expected a mapping", file=str(path))
    return Layer(str(path), found or {})


def _environment(env: Mapping[str, str]) -> Iterable[Layer]:
    for key, default in KNOWN.items():
        name = "DATAFLARE_" + key.upper().replace(".", "_")
        if name in env:
            yield Layer(name, {key: _typed(default, env[name])})


def _typed(default: Any, text: str) -> Any:
    """Read a variable's text as the type of the setting."""
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if isinstance(default, list):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(default, dict):
        return dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    return text


def _check(layer: Layer) -> list[Problem]:
    import difflib

    problems: list[Problem] = []
    for key, value in _flat(layer.values, frozenset(KNOWN)):
        if key not in KNOWN:
            near = difflib.get_close_matches(key, list(KNOWN), 1)
            fix = f"did you mean {near[0]!r}?" if near else None
            problems.append(CONFIG_UNKNOWN_KEY.problem(f"{layer.origin}: {key!r} is no setting", path=key, fix=fix))
        elif type(value) is not type(KNOWN[key]):
            wanted = type(KNOWN[key]).__name__
            problems.append(CONFIG_INVALID.problem(f"{layer.origin}: expected {wanted}, found {value!r}", path=key))
    return problems


def _flat(values: Mapping[str, Any], whole: frozenset[str], under: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{under}{key}"
        if isinstance(value, Mapping) and value and name not in whole:
            yield from _flat(value, whole, name + ".")
        else:
            yield name, value

"""Errors of the plugin store; the ones of consent are the kernel's."""

from __future__ import annotations

from dataflare_sdk import code

NOT_A_WHEEL = code(
    "plugin.not-a-wheel",
    3,
    "What should be installed is neither a wheel nor a WASM module with its manifest.",
    "Install a `.whl`; source distributions run their code to be built, and are refused.",
)
BAD_WHEEL = code("plugin.bad-wheel", 3, "A wheel is damaged, or is not built as wheels are.", "Fetch it again, or ask its publisher.")
UNSAFE = code(
    "plugin.unsafe-wheel",
    6,
    "A wheel holds what could reach outside its own folder or run by itself.",
    "Do not install it; tell its publisher.",
)
TOO_LARGE = code(
    "plugin.too-large",
    6,
    "A wheel unpacks to more than a plugin may take.",
    "Do not install it; tell its publisher.",
)
SHADOWS = code(
    "plugin.shadows",
    6,
    "A plugin takes a name that belongs to DataFlare, to Python or to another plugin.",
    "Do not install it; tell its publisher.",
)
TAMPERED = code(
    "plugin.tampered",
    6,
    "A signature does not fit: the file was changed, or another key signed it.",
    "Do not use it; fetch it again from its publisher.",
)
NOT_SIGNED = code(
    "plugin.not-signed",
    6,
    "A signature by a key of the policy is required, and there is none.",
    "Put the signature beside the file, and the publisher's key under `keys` in policy.yaml.",
)
NO_PLUGIN = code("plugin.no-manifest", 3, "What should be installed has no DataFlare plugin in it.", "Check the name of the package.")
NOT_FOUND = code(
    "plugin.not-found",
    4,
    "pip found no wheel for a plugin or one of its dependencies.",
    "Check the name; only wheels are taken; `--find-links FOLDER` adds a folder of wheels.",
)
NO_PIP = code("plugin.no-pip", 4, "pip is not installed, and a plugin has to be fetched.", "Run `python -m ensurepip`.")
NOT_INSTALLED = code(
    "plugin.not-installed",
    3,
    "No plugin of this name is installed.",
    "See `dataflare plugin list`.",
)
NOT_IN_STORE = code(
    "plugin.not-in-store",
    3,
    "The plugin was not installed with `dataflare plugin install`.",
    "Use the tool it was installed with.",
)
NO_PREVIOUS = code("plugin.no-previous", 3, "There is no earlier version of a plugin to use.", "See `dataflare plugin inspect NAME`.")
NOT_LOCKED = code(
    "plugin.not-locked",
    3,
    "The lock does not say which files a plugin consists of.",
    "Install the plugin with `dataflare plugin install` where the lock is written.",
)
BAD_KEY = code("plugin.bad-key", 3, "A signing key cannot be read.", "Make one with `dataflare plugin sign --new-key FILE`.")
CLASH = code(
    "plugin.clash",
    6,
    "A plugin of the store brings another version of a package that this process has already.",
    "Run the plugin at the level `process`, where it has its own.",
)

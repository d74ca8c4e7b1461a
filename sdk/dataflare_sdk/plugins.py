"""For plugins that manage or load other plugins: manifests, the policy, what is granted, and the hash over a plugin's files."""

from __future__ import annotations

from dataflare.artifacts import artifact_hash, file_hash
from dataflare.artifacts import files as artifact_files
from dataflare.capabilities import Capabilities, described, effective
from dataflare.config import config_dir
from dataflare.index import ACTIVE, store_folder
from dataflare.manifest import Component, Manifest
from dataflare.manifest import read as read_manifest
from dataflare.plugins import InProcess
from dataflare.policy import LOCK, READY, Policy, asks, distribution, more, named
from dataflare.text import shown
from dataflare.versions import in_range, older

__all__ = [
    "ACTIVE",
    "LOCK",
    "READY",
    "Capabilities",
    "Component",
    "InProcess",
    "Manifest",
    "Policy",
    "artifact_files",
    "artifact_hash",
    "asks",
    "config_dir",
    "described",
    "distribution",
    "effective",
    "file_hash",
    "in_range",
    "more",
    "named",
    "older",
    "read_manifest",
    "shown",
    "store_folder",
]

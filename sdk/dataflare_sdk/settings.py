"""Settings in layers, and `${env:…}`, `${param:…}`: handed on from the kernel for plugins that read documents."""

from __future__ import annotations

from dataflare.config import Layer, Referring, Substituted, explain, hide, merge, reveal, substitute

__all__ = ["Layer", "Referring", "Substituted", "explain", "hide", "merge", "reveal", "substitute"]

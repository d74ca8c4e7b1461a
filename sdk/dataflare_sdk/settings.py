"""Settings in layers, and `${env:…}`, `${param:…}`: handed on from the kernel for plugins that read documents."""

from __future__ import annotations

from dataflare.config import Layer, Substituted, explain, merge, substitute

__all__ = ["Layer", "Substituted", "explain", "merge", "substitute"]

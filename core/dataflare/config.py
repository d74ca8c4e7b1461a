"""Configuration and `${…}` references."""

from __future__ import annotations

__all__ = ["Substituted"]


class Substituted(str):
    """Text that came out of `${…}`: typed by the field it stands in, unlike text a person quoted."""

    __slots__ = ()

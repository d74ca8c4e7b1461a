"""How large the state of an operator is: the bytes that a checkpoint refers to for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class StateSizes:
    """Remembers the size of every chunk that an operator put into the state store or got from it.

    A state names its chunks by their references, wherever they stand in it: chunks of earlier checkpoints count too.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def writing(self, put: Callable[[bytes], str]) -> Callable[[bytes], str]:
        """Return the store's `put`, watched."""

        def watched(chunk: bytes) -> str:
            ref = put(chunk)
            self._known[ref] = len(chunk)
            return ref

        return watched

    def reading(self, get: Callable[[str], bytes]) -> Callable[[str], bytes]:
        """Return the store's `get`, watched."""

        def watched(ref: str) -> bytes:
            chunk = get(ref)
            self._known[ref] = len(chunk)
            return chunk

        return watched

    def of(self, state: Any) -> int:
        """Return the bytes of the chunks that a state refers to, each once; what it no longer refers to is forgotten."""
        self._known = {text: self._known[text] for text in _texts(state) if text in self._known}
        return sum(self._known.values())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)

"""Somebody else who writes to the sources between and during runs."""

from __future__ import annotations

import random
import threading
from typing import Any

from dataflare_plugins.prove import oracle
from dataflare_plugins.prove.world import World, extract_of

PAUSE = (0.001, 0.02)
"""Seconds between two transactions, from and to."""


class Writers:
    """Writes on a thread of its own, from `with` to `stop`.

    Args:
        world: whose sources are written to; None: nobody writes.
        seed: of what is written.

    Attributes:
        changed: rows changed so far.
    """

    def __init__(self, world: World | None, seed: int) -> None:
        self._world = world
        self._seed = seed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write, name="prove-writer", daemon=True)
        self._error: BaseException | None = None
        self.changed = 0

    def __enter__(self) -> Writers:
        if self._world is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(30.0)

    def stop(self) -> None:
        """Stop writing; the last transaction is committed then.

        Raises:
            Exception: whatever a writer failed with.
        """
        self.__exit__()
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        made: list[Any] = []
        try:
            made = self._made()
            chance = random.Random(self._seed)  # noqa: S311
            while made and not self._stopping.wait(chance.uniform(*PAUSE)):
                self.changed += chance.choice(made).step()
        except BaseException as error:
            self._error = error
        finally:
            for writer in made:
                writer.close()

    def _made(self) -> list[Any]:
        assert self._world is not None
        workflow, made = self._world.workflow, []
        for node in workflow.of("source"):
            extract = extract_of(node)
            if extract.mode == "full":
                continue
            writer = self._world.sources[node.id].writer(extract, self._seed, oracle.kinds_for(workflow, node.id))
            if writer is not None:
                made.append(writer)
        return made

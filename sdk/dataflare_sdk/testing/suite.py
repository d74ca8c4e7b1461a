"""A suite: named checks, run one by one, each on a component of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from dataflare.records import record

S = TypeVar("S", bound="Suite")


@record
class Check:
    """One demand of a contract.

    Attributes:
        name: short and stable, `resumes-after-any-offset`.
        demand: what it demands, one sentence.
        run: the method that raises AssertionError when the demand is not met.
    """

    name: str
    demand: str
    run: Callable[[Any], None]


@record
class Failure:
    """A check that was not met, and how it showed."""

    check: str
    reason: str


class Suite:
    """Base of the suites: collects the methods marked with `check` in the order they are written."""

    @classmethod
    def checks(cls) -> list[Check]:
        """Return the checks of this suite."""
        found = [getattr(cls, name) for klass in reversed(cls.__mro__) for name in vars(klass)]
        return [
            Check(f.__name__.replace("_", "-"), (f.__doc__ or "").strip().splitlines()[0], f)
            for f in found
            if getattr(f, "is_check", False)
        ]

    def failures(self) -> Iterator[Failure]:
        """Run every check and yield those that are not met; an exception in the component is a failure too."""
        for check in self.checks():
            try:
                check.run(self)
            except Exception as error:
                yield Failure(check.name, f"{type(error).__name__}: {error}")

    def assert_conforms(self) -> None:
        """Run every check.

        Raises:
            AssertionError: names each check that is not met, its demand and the reason.
        """
        demands = {c.name: c.demand for c in self.checks()}
        failed = [f"{f.check}: {demands[f.check]}\n    {f.reason}" for f in self.failures()]
        if failed:
            raise AssertionError("the component does not conform:\n" + "\n".join(failed))


def check(method: Callable[[S], None]) -> Callable[[S], None]:
    """Mark a method of a suite as a check; its docstring's first line is the demand."""
    method.is_check = True  # type: ignore[attr-defined]
    return method

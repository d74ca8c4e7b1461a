"""Conformance suites: one call holds a component to the contract of its kind.

    from dataflare_sdk.testing import SourceSuite

    def test_my_source_conforms(tmp_path):
        SourceSuite(lambda ctx: MySource(MyConfig(), ctx), folder=tmp_path).assert_conforms()

Every check has a name, a sentence that says what it demands, and a deliberately broken twin in DataFlare's own
tests that it, and no other check, refuses.
"""

from dataflare_sdk.testing.context import FakeContext
from dataflare_sdk.testing.destinations import DestinationSuite
from dataflare_sdk.testing.lookups import LookupSuite
from dataflare_sdk.testing.processors import ProcessorSuite
from dataflare_sdk.testing.sources import SourceSuite
from dataflare_sdk.testing.states import LetterStoreSuite, StateStoreSuite
from dataflare_sdk.testing.suite import Check, Failure, Suite

__all__ = [
    "Check",
    "DestinationSuite",
    "Failure",
    "FakeContext",
    "LetterStoreSuite",
    "LookupSuite",
    "ProcessorSuite",
    "SourceSuite",
    "StateStoreSuite",
    "Suite",
]

from pathlib import Path

from dataflare_plugins.state_sqlite.store import StateConfig, StateSqlite
from dataflare_sdk.testing import FakeContext, LetterStoreSuite, StateStoreSuite


def test_state_sqlite_conforms(tmp_path: Path) -> None:
    StateStoreSuite(lambda place: StateSqlite(StateConfig(), FakeContext(place)), folder=tmp_path).assert_conforms()
    LetterStoreSuite(lambda place: StateSqlite(StateConfig(), FakeContext(place)), folder=tmp_path).assert_conforms()

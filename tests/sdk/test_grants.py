"""Placeholders in grants: from the workflow only, and nothing is allowed by what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from dataflare_sdk.grants import expand


@pytest.mark.parametrize(
    ("entry", "config", "made"),
    [
        ({"host": "${config.host}", "port": "${config.port}"}, {"host": "db.example", "port": 5432}, [{"host": "db.example", "port": 5432}]),
        ({"host": "${config.hosts}"}, {"hosts": ["a.example", "b.example"]}, [{"host": "a.example"}, {"host": "b.example"}]),
        ({"path": "${config.dir}/in"}, {"dir": "/data"}, [{"path": "/data/in"}]),
        ({"host": "${config.server.host}"}, {"server": {"host": "x"}}, [{"host": "x"}]),
        ({"host": "${config.host}"}, {}, []),
        ({"host": "x.${config.host}"}, {}, []),
        ({"host": "${config.host}"}, {"host": None}, []),
        ({"host": "${config.host}"}, {"host": {"a": 1}}, []),
        ({"host": "${config.host}"}, {"host": True}, []),
        ({"host": "${config.host}"}, {"host": "${config.other}", "other": "evil"}, [{"host": "${config.other}"}]),
        ({"host": "${config.a}", "port": "${config.b}"}, {"a": ["x", "y"], "b": [1, 2]},
         [{"host": "x", "port": 1}, {"host": "x", "port": 2}, {"host": "y", "port": 1}, {"host": "y", "port": 2}]),
        ({"host": "${config.a}.${config.b}"}, {"a": "${config.b}", "b": "x"}, [{"host": "${config.b}.x"}]),
        ({"host": "a.example", "why": "${config.host}"}, {}, [{"host": "a.example", "why": "${config.host}"}]),
    ],
)  # fmt: skip
def test_entries(entry: dict[str, Any], config: dict[str, Any], made: list[dict[str, Any]]) -> None:
    assert expand({"net": [entry]}, config) == {"net": made}


def test_what_is_no_list_of_entries_stays() -> None:
    grants = {"state": {"max_bytes": "1MiB"}, "host": ["log", "metric"]}
    assert expand(grants, {}) == grants

"""A PostgreSQL whose disk is full, then is not: called by `test_full_disk.py` in a mount namespace of its own.

Usage: python -m tests.faults.full_disk FOLDER SMALL LEFT    where SMALL is a small file system, with LEFT MiB left
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers.postgres import PostgresServer, installed

ROWS = 40_000


def main(folder: Path, small: Path, left: int) -> dict[str, Any]:
    """Run with a full disk, make room, run again; return what both runs said, and what psql sees."""
    server = PostgresServer(installed()[0], fsync=True, options={"max_wal_size": "48MB", "min_wal_size": "32MB"})
    shutil.rmtree(server.folder)
    server.folder = small / "pg"
    server.folder.mkdir()
    try:
        database = server.start().create_database()
        write(folder, server.url(database))
        filler = small / "filler"
        with filler.open("wb") as file:
            file.write(bytes(max(0, shutil.disk_usage(small).free - (left << 20))))
        first = run(folder)
        filler.unlink()
        if not server.alive:
            server.start()  # it gives up itself when its log has no room
        again = run(folder)
        found = server.psql("SELECT count(*), count(DISTINCT id), sum(id), min(length(text)) FROM t", database)
        return {"first": first, "again": again, "found": found.split()}
    finally:
        server.remove()


def write(folder: Path, url: str) -> None:
    """Write the workflow."""
    document = {
        "dataflare": 1,
        "name": "full",
        "sources": {"g": {"use": "generate", "with": {"rows": ROWS, "columns": {"id": "i", "text": "repeat(md5(i::varchar), 32)"}}}},
        "destinations": {"t": {"use": "postgres", "with": {"url": url, "table": "public.t"}, "write": {"mode": "append"}}},
        "state": {"checkpoint": {"every": "1h", "rows": 4000}},
        "errors": {"retry": {"attempts": 2, "initial": "100ms"}},
        "runtime": {"lane": "streaming", "batch": {"rows": 1000}},
    }
    (folder / "w.json").write_text(json.dumps(document))


def run(folder: Path) -> dict[str, Any]:
    """Run the workflow and return exit code and document."""
    done = subprocess.run([sys.executable, "-m", "dataflare", "run", "w.json", "--json"], cwd=folder, capture_output=True, text=True)
    return {"exit": done.returncode, **json.loads(done.stdout)}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))

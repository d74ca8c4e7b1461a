"""Codes of proofs."""

from __future__ import annotations

from dataflare_sdk import code

NO_TWIN = code(
    "prove.no-twin",
    3,
    "A connector has no scratch twin, so a proof would have to touch the real system.",
    "Prove the workflow with connectors that have one (files, sqlite, duckdb, postgres, generate).",
)
CANNOT_COMPARE = code(
    "prove.cannot-compare",
    3,
    "What the destinations hold cannot be compared with an undisturbed run.",
    "Change what the message names, or prove that part in a workflow of its own.",
)
RUN_FAILED = code("prove.run-failed", 1, "A run of the proof failed by itself.", "Mend what the run says; `dataflare run` fails alike.")
NOT_PROVEN = code(
    "prove.not-proven",
    1,
    "Rows were lost or doubled, or a failpoint was hit too seldom.",
    "The report names them; the same --seed makes the same kills.",
)
STUCK = code("prove.stuck", 1, "A run of the proof did not end.", "Run the workflow by itself; look where it waits.")

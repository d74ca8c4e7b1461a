"""The bulk lane without a statement: a destination takes what a source hands over, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Mapping

from dataflare_plugins.engine.running.bulk import BulkTask, StatementFailed
from dataflare_plugins.engine.running.error_handler import is_row_error
from dataflare_sdk import Partition
from dataflare_sdk.failpoints import failpoint
from dataflare_sdk.plans import extract_of_spec


class HandoverTask(BulkTask):
    """Lets the destination take everything in one go; what it cannot take goes through the streaming lane."""

    def _execute(self) -> dict[str, Mapping[str, float]]:
        began = time.perf_counter()
        source, destination = (self._built[n] for n in self.spec.nodes)
        node = self._env.plan.node(self.spec.nodes[0])
        extract = extract_of_spec(node)
        failpoint("bulk.statement.before")
        handovers = [source.hand_over(Partition(p["id"], p["stream"], p["spec"]), extract) for p in node.partitions]
        try:
            rows = destination.take_over(handovers)
        except Exception as error:
            if is_row_error(error):
                raise StatementFailed(str(error)) from error
            raise
        finally:
            for handover in handovers:
                handover.close()
        if rows is None:
            raise StatementFailed("the columns of the two sides differ")
        failpoint("bulk.statement.after")
        found: dict[str, Mapping[str, float]] = {}
        for name in self._mine:
            counts = self._env.monitor.counts(name)
            counts.rows_in = counts.rows_out = rows
            counts.seconds = time.perf_counter() - began
            found[name] = counts.as_dict()
        return found

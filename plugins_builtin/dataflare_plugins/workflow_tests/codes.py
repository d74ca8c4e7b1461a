"""What can be wrong with a test file."""

from __future__ import annotations

from dataflare_sdk import code

NOT_A_TEST = code("test.invalid", 3, "A test file says something that tests do not have.", "See the guide `test-a-workflow`.")
UNKNOWN_NODE = code("test.unknown-node", 3, "A test names a node that the workflow does not have.", "Use the id of a node.")
NOT_GIVEN = code("test.source-not-given", 3, "A source of the workflow is given no rows.", "Give it rows; `[]` is none.")
UNKNOWN_COLUMN = code("test.unknown-column", 3, "Rows of a test have a column that is not there.", "Use a column that is there.")
NOT_CASTABLE = code("test.not-castable", 3, "A value of a test is none of its column's type.", "Write a value of the type named.")
UNSUPPORTED = code("test.unsupported", 3, "Tests cannot stand in for this.", "Test it another way; see the guide.")
UNSET = code(
    "test.unset-variable", 3, "A node that runs in the test needs a variable that is not set.", "Give it under `env:`, or mock the node."
)
NO_TESTS = code("test.none-found", 2, "There is no test here.", "Give a `*.test.yaml`, a workflow with one beside it, or a folder.")
NOT_UPDATED = code("test.not-updated", 3, "Expected rows cannot be written anew where they stand.", "Write them as a list below their key.")

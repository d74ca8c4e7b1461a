"""What starting a server of any kind needs; it lives in the SDK, where proofs use it too."""

from dataflare_sdk.servers import UNPRIVILEGED, ServerProcess, as_user, end, free_port, own_folder, spawn, wait_until

__all__ = ["UNPRIVILEGED", "ServerProcess", "as_user", "end", "free_port", "own_folder", "spawn", "wait_until"]

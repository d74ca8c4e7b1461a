"""Actors on threads of this process: supervision with backoff, inboxes bounded in bytes."""

"""Partitions of topics by name: `orders/0`."""

from __future__ import annotations

from typing import Any

from dataflare_plugins.kafka.errors import driver

EARLIEST, LATEST = -2, -1
"""What brokers take for the first and for the next offset of a partition."""


def part_of(topic: str, number: int) -> str:
    """Return the name of a partition."""
    return f"{topic}/{number}"


def split(name: str) -> tuple[str, int]:
    """Return topic and number of a partition."""
    topic, _, number = name.rpartition("/")
    return topic, int(number)


def place(name: str, offset: int) -> Any:
    """Return a partition with an offset, as the client takes it."""
    return driver().TopicPartition(*split(name), offset)

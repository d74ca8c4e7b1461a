"""Inflow: what sources of messages (brokers, logs, webhooks) have in common.

| room | what is in it |
|---|---|
| `options` | the `with:` keys they share, and the columns that follow from them |
| `messages` | a page of raw messages, column by column |
| `decoder` | from raw messages to typed columns, and the messages that cannot be |
| `durable_log` | keeps messages that cannot be read again, until they are durable everywhere |
| `log_segments`, `log_frames` | its files, what is done with them after a crash, and what stands in them |
| `source`, `reader` | base classes: schema, offsets, lingering, `until`, what came already |
"""

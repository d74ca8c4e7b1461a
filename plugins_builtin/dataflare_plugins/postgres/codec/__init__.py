"""The wire formats of PostgreSQL, to Arrow and from it: binary COPY both ways, and the messages of logical replication.

The bytes are taken apart in WebAssembly (`guest/`, C compiled to `guest.wasm`); Python owns the memory and makes
Arrow arrays of it. `types.py` is the one table of types that all of them follow.
"""

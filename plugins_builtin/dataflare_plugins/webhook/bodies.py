"""What a request carries: unpacked, and cut into messages, each a JSON object."""

from __future__ import annotations

import json
import zlib
from typing import Any, NoReturn

NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-seq", "application/jsonlines")
MEMBERS = 1000
"""Parts of a packed body at most: each costs a copy of all that follow it."""
SPACE = " \t\r\n"


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """A request that is answered with an error.

    Attributes:
        status: of the answer.
        code: what is wrong, for machines.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """Return a body as it was before its `Content-Encoding`.

    Raises:
        Refused: 415, 413 or 400.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise Refused(415, "encoding", f"the content encoding '{encoding}' is not taken; gzip is")
    parts: list[bytes] = []
    size = 0
    left = MEMBERS
    try:
        while body:
            if not left:
                raise Refused(400, "gzip", f"the packed body has more than {MEMBERS} parts")
            left -= 1
            one = zlib.decompressobj(31)
            parts.append(one.decompress(body, most + 1 - size))
            size += len(parts[-1])
            if size > most:
                raise Refused(413, "too-large", f"the body has more than {most} bytes when it is unpacked")
            if not one.eof:
                raise Refused(400, "gzip", "the packed body ends too early")
            body = one.unused_data
    except zlib.error as error:
        raise Refused(400, "gzip", f"the body is no gzip: {error}") from None
    return b"".join(parts)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# Numbers are only looked at: what they are worth is the column's to say.
_DECODER = json.JSONDecoder(parse_constant=_constant, parse_int=str, parse_float=str)


def objects(body: bytes, kind: str) -> list[bytes]:
    """Return the JSON objects of a body, one without line feeds each: one object, an array of them, or one a line.

    Args:
        body: unpacked.
        kind: the content type, without parameters.

    Raises:
        Refused: 400, with the reason.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, "no-utf8", f"the body is no UTF-8: byte {error.start}") from None
    text = text.strip(SPACE + "\ufeff")
    try:
        if kind in NDJSON:
            return _lines(text)
        if text.startswith("["):
            return _elements(text)
        found, end = _DECODER.raw_decode(text)
        if end < len(text) and "\n" in text[end:]:
            return _lines(text)
        if end < len(text):
            raise ValueError(f"something follows the object: char {end}")
        return [_object(found, text, "the body")]
    except RecursionError:
        raise Refused(400, "no-json", "the body is nested too deeply") from None
    except ValueError as error:
        raise Refused(400, "no-json", f"the body is no JSON: {error}") from None


def _lines(text: str) -> list[bytes]:
    made = []
    for number, line in enumerate(text.split("\n"), 1):
        one = line.strip(SPACE + "\x1e")
        if not one:
            continue
        try:
            found, end = _DECODER.raw_decode(one)
        except ValueError as error:
            raise Refused(400, "no-json", f"line {number} is no JSON: {error}") from None
        if end < len(one):
            raise Refused(400, "no-json", f"line {number} is no JSON: something follows the object, char {end}")
        made.append(_object(found, one, f"line {number}"))
    return made


def _elements(text: str) -> list[bytes]:
    """Return the elements of an array as they are written."""
    made: list[bytes] = []
    at = _after_space(text, 1)
    if text[at : at + 1] == "]":
        at += 1
    else:
        while True:
            found, end = _DECODER.raw_decode(text, at)
            made.append(_object(found, text[at:end], f"element {len(made)}"))
            at = _after_space(text, end)
            mark = text[at : at + 1]
            if mark not in (",", "]"):
                raise ValueError(f"expecting ',' or ']': char {at}")
            at += 1
            if mark == "]":
                break
            at = _after_space(text, at)
    if at < len(text):
        raise ValueError(f"something follows the array: char {at}")
    return made


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at


def _object(found: Any, text: str, what: str) -> bytes:
    if not isinstance(found, dict):
        raise Refused(400, "no-object", f"{what} is no JSON object")
    # Within JSON a line feed can only be space: in a text it is written \n.
    return text.replace("\n", " ").replace("\r", " ").encode()


def pieces(body: bytes, kind: str) -> list[bytes]:
    """Return the messages of a body of which not all need be JSON objects: those that are none are bad rows later."""
    try:
        return objects(body, kind)
    except Refused:
        return [line.strip() for line in body.split(b"\n") if line.strip()] or [body]

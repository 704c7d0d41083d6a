"""Safetensors files made bad: byte by byte, and by what they say with a checksum that fits."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

Header = dict[str, Any]
Spoiler = Callable[[bytes, random.Random], bytes]


def split(content: bytes) -> tuple[Header, bytes]:
    """(The header, the bytes of the tensors)."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Mapping[str, Any] | str, body: bytes) -> bytes:
    """A file with this header, whatever it says."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def one_bit(content: bytes, draw: random.Random) -> bytes:
    """One bit of the whole file is another."""
    return _flip(content, draw.randrange(len(content)), draw)


def one_bit_of_the_header(content: bytes, draw: random.Random) -> bytes:
    """One bit of the header's text is another."""
    (length,) = struct.unpack("<Q", content[:8])
    return _flip(content, 8 + draw.randrange(length), draw)


def one_bit_of_the_tensors(content: bytes, draw: random.Random) -> bytes:
    """One bit of a number is another."""
    (length,) = struct.unpack("<Q", content[:8])
    return _flip(content, draw.randrange(8 + length, len(content)), draw)


def one_digit_of_the_header(content: bytes, draw: random.Random) -> bytes:
    """One digit in the header's text is another: it stays what it is, JSON, and says something else."""
    (length,) = struct.unpack("<Q", content[:8])
    digits = [at for at in range(8, 8 + length) if content[at : at + 1].isdigit()]
    at = draw.choice(digits)
    other = draw.choice([digit for digit in b"0123456789" if digit != content[at]])
    return content[:at] + bytes([other]) + content[at + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    """The file ends early."""
    return content[: draw.randrange(len(content))]


def longer(content: bytes, draw: random.Random) -> bytes:
    """The file goes on after its end."""
    return content + draw.randbytes(draw.randrange(1, 5000))


def a_run_of_zeros(content: bytes, draw: random.Random) -> bytes:
    """A block that never reached the disk."""
    at = draw.randrange(len(content))
    stop = min(len(content), at + draw.choice((16, 128, 512)))
    return content[:at] + b"\0" * (stop - at) + content[stop:]


def lying_length(content: bytes, draw: random.Random) -> bytes:
    """The header's length is another."""
    (length,) = struct.unpack("<Q", content[:8])
    lie = draw.choice((0, 1, length - 1, length + 1, length * 2, 2**31, 2**40, 2**63 - 1, 2**64 - 1))
    return struct.pack("<Q", lie) + content[8:]


def huge_shape(content: bytes, draw: random.Random) -> bytes:
    """A tensor claims a shape, or a place in the file, that nothing could hold."""
    header, body = split(content)
    entry = header[draw.choice(_names(header))]
    huge = draw.choice((2**31, 2**40, 2**62, 2**64, 10**30, -1))
    if draw.random() < 0.5:
        entry["shape"] = [*entry["shape"][1:], huge] if draw.random() < 0.7 else [huge, huge]
    if draw.random() < 0.5:
        entry["data_offsets"] = [0, max(huge, 0)]
    return join(header, body)


def wrong_dtype(content: bytes, draw: random.Random) -> bytes:
    """A tensor's numbers are said to be of another kind."""
    header, body = split(content)
    entry = header[draw.choice(_names(header))]
    kinds = ["F64", "F16", "BF16", "I32", "U32", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3"]
    entry["dtype"] = draw.choice([*kinds, "F31", "", 7, None])
    return join(header, body)


def twice_the_name(content: bytes, draw: random.Random) -> bytes:
    """Two tensors, or two entries of the metadata, of one name."""
    header, body = split(content)
    text = json.dumps(header)
    name = draw.choice([*_names(header), "__metadata__"])
    value = header[name] if name != "__metadata__" else {**header[name], "superlora.format_version": "9"}
    entry = f"{json.dumps(name)}: {json.dumps(value)}"
    return join(f"{{{entry}, {text[1:]}" if draw.random() < 0.5 else f"{text[:-1]}, {entry}}}", body)


def odd_name(content: bytes, draw: random.Random) -> bytes:
    """A tensor is called like a file, or like nothing at all."""
    header, body = split(content)
    odd = draw.choice(("../../etc/passwd", "/etc/passwd", "head./dev/full", "head...", "", "\0", "a\nb", "\x1b[2J",
                       "head.__class__", "head.blocks.0", "\ud800", "x" * 10_000, "__metadata__ "))  # fmt: skip
    header[odd] = header.pop(draw.choice(_names(header)))
    return join(header, body)


def metadata_of_other_types(content: bytes, draw: random.Random) -> bytes:
    """What should be text is none, or text that is no JSON of the right form."""
    header, body = split(content)
    meta = header["__metadata__"]
    key = draw.choice([key for key in meta if key != "format"] or ["format"])
    worse = ("", "[]", "{}", "null", "7", '"x"', "[" * 100_000, "{" * 5000, "1" * 5000, "NaN", '"\\ud800"', "\x1b[2J")
    meta[key] = draw.choice((*worse, None, 7, [], {}))
    if draw.random() < 0.2:
        del meta[key]
    return join(header, body)


def foreign(content: bytes, draw: random.Random) -> bytes:
    """Another format altogether."""
    return draw.choice((
        b"", b"\0" * 8, b"PK\x03\x04" + content[:200], b"\x80\x02}q\x00.", b"GGUF" + content[:100],
        b"\x89PNG\r\n\x1a\n" + content[:50], b"\x93NUMPY" + content[:90], b'{"weight_map": {}}', b"---\na: 1\n",
        b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.", draw.randbytes(500), join({}, b""), join("[]", b""),
    ))  # fmt: skip


BYTES: dict[str, Spoiler] = {
    "one bit of the file": one_bit,
    "one bit of the header": one_bit_of_the_header,
    "one bit of a tensor": one_bit_of_the_tensors,
    "one digit of the header": one_digit_of_the_header,
    "truncated": cut,
    "bytes after its end": longer,
    "a block of zeros": a_run_of_zeros,
    "a header of another length": lying_length,
    "a huge shape": huge_shape,
    "another dtype": wrong_dtype,
    "a name twice": twice_the_name,
    "an odd name": odd_name,
    "odd metadata": metadata_of_other_types,
    "another format": foreign,
}


def _names(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _flip(content: bytes, at: int, draw: random.Random) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]

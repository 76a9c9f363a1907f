"""Names for independent streams of noise."""

from __future__ import annotations

import hashlib

from hal.errors import UsageError


def stream_key(*parts: int | str) -> int:
    """A 64-bit key for the stream that `parts` name, such as `stream_key("forward", step, layer, "q_proj")`: BLAKE2b
    over the typed, length-prefixed parts, so it is the same in every process and on every machine, and differs for (1,
    "2"), ("1", 2) and ("12",); no part, or one that is neither a string nor an integer, is a UsageError.
    """
    if not parts:
        raise UsageError("stream_key() got no parts: name the stream by at least one string or integer")
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (int, str)):
            raise UsageError(f"stream_key() got {part!r}: a part must be an integer or a string")
        kind = b"i" if isinstance(part, int) else b"s"
        encoded = str(part).encode()
        digest.update(kind + len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")

"""What one record may cost. Web data holds bombs by accident and on purpose; a record beyond these is left out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecordLimits:
    """Bytes of a record, bytes out per byte in when it is unpacked, seconds for it, bytes of its header.

    Seconds are those of the thread that reads: a busy machine makes no record slow. The ratio counts from `ratio_from`
    bytes on: a short page of one repeated line is no bomb.
    """

    record_bytes: int = 16 << 20
    ratio: int = 200
    ratio_from: int = 64 << 10
    seconds: float = 2.0
    header_bytes: int = 64 << 10


def reason_too_large(out: int, taken: int, limits: RecordLimits) -> str | None:
    """Why `out` unpacked bytes from `taken` packed ones are too many; None when they are not."""
    if out > limits.record_bytes:
        return "too large"
    if out > limits.ratio_from and out > limits.ratio * taken:
        return "compression ratio"
    return None


def decoded(text: bytes, limits: RecordLimits) -> tuple[str | None, str]:
    """The text of a record, or None and the reason why it is left out."""
    if len(text) > limits.record_bytes:
        return None, "too large"
    try:
        words = text.decode()
    except UnicodeDecodeError:
        return None, "not UTF-8"
    return (words, "") if words.strip() else (None, "empty")

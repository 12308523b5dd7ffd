"""How fast a device could do the work at best: the floors that the results are a percentage of.

A floor counts what any implementation must move or multiply and nothing else, so that all providers of a shape share
one. It is a convention where designs differ: the scan's states are saved in bf16 every 64 steps, its chunks hold
64 rows (steps x rank), the gradients of its two matrices are written in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROWS = 64  # of a chunk; a longer one saves less memory traffic than its quadratic part costs
STEPS_PER_STATE = 64
BF16, FP32 = 2, 4  # bytes

MATRIX = 8192  # rows and columns of the large product
# Bytes and bf16 operations per second that one device reached: a plain copy, and a large product of random matrices.
# Fixed, because a floor that moved with the clocks of a run would make the runs incomparable.
KNOWN_DEVICES = {"NVIDIA H200": (4.3e12, 790e12)}


@dataclass(frozen=True)
class Rates:
    """What a device reaches at best."""

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True)
class Work:
    """One phase of an op: what it must move and multiply at least. Phases follow each other and cannot overlap."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class ScanShape:
    """Sizes of a scan; half of the state's channels rotate, as by default in the paper's code."""

    batch: int
    steps: int
    heads: int
    head_size: int = 64
    state: int = 128
    rank: int = 1
    groups: int = 1

    @property
    def pairs(self) -> int:
        return self.state // 4

    @property
    def row_heads(self) -> int:
        """Pairs of a token and a head."""
        return self.batch * self.steps * self.heads

    def __str__(self) -> str:
        return f"B{self.batch} T{self.steps} H{self.heads} P{self.head_size} N{self.state} R{self.rank}"


def floor_ms(work: Iterable[Work], rates: Rates) -> float:
    """Each phase takes as long as the slower of its memory traffic and its products."""
    return 1e3 * sum(max(w.bytes / rates.bytes_per_s, w.flops / rates.flops_per_s) for w in work)


def scan_inference(shape: ScanShape) -> Work:
    """Read x, z, B, C, the three controls of a head and the angles; write y."""
    tokens, x = shape.batch * shape.steps, shape.row_heads * shape.head_size * BF16
    matrices = 2 * tokens * shape.rank * shape.groups * shape.state * BF16
    controls = (3 * shape.row_heads + tokens * shape.pairs) * BF16
    # per row and head: Q K^T and its product with X inside the chunk, Q S and the update of S across chunks
    per_row = 2 * ROWS * (shape.state + shape.head_size) + 4 * shape.state * shape.head_size
    return Work(3 * x + matrices + controls, shape.row_heads * shape.rank * per_row)


def saved_states(shape: ScanShape) -> int:
    """Bytes of the states that a training forward leaves for the backward."""
    chunks = -(-shape.steps // STEPS_PER_STATE)
    return shape.batch * shape.heads * chunks * shape.state * shape.head_size * BF16


def scan_forward(shape: ScanShape) -> Work:
    """A forward that a backward will follow."""
    work = scan_inference(shape)
    return Work(work.bytes + saved_states(shape), work.flops)


def scan_backward(shape: ScanShape) -> Work:
    """Read the inputs, the states and dy; write dx, dz, dB, dC and the gradients of controls and angles."""
    tokens, x = shape.batch * shape.steps, shape.row_heads * shape.head_size * BF16
    matrices = 2 * tokens * shape.rank * shape.groups * shape.state
    controls = 2 * (3 * shape.row_heads + tokens * shape.pairs) * BF16
    per_row = 2 * ROWS * (3 * shape.state + 2 * shape.head_size) + 8 * shape.state * shape.head_size
    moved = 5 * x + matrices * (BF16 + FP32) + controls + saved_states(shape)
    return Work(moved, shape.row_heads * shape.rank * per_row)


def scan_work(shape: ScanShape, direction: str) -> tuple[Work, ...]:
    """The phases of `inference`, `forward` (with what the backward needs) or `forward+backward`."""
    if direction == "inference":
        return (scan_inference(shape),)
    if direction == "forward":
        return (scan_forward(shape),)
    if direction == "forward+backward":
        return (scan_forward(shape), scan_backward(shape))
    raise ValueError(f"direction: inference, forward or forward+backward, got {direction!r}")


def orthogonalise_flops(rows: int, columns: int, iterations: int = 5) -> int:
    """Polar Express of one matrix with symmetric products at half their cost, in the cheaper of its two forms.

    Per iteration the direct form takes X X^T, R^2 and the product with X. The Gram form, with one restart, takes X X^T
    and the product with X twice, and for each iteration R^2, each Q after a part's first, and Z R Z before its next;
    their results are symmetric too.
    """
    n, m = min(rows, columns), max(rows, columns)
    gram, square, product = n * n * m, n**3, 2 * n * n * m
    direct = iterations * (gram + square + product)
    later = max(iterations - 2, 0)  # behind the restart
    repeats = max(min(iterations, 2) - 1, 0) + max(later - 1, 0)
    parts = 1 + (later > 0)
    return min(direct, parts * (gram + product) + (iterations + 3 * repeats) * square)

"""Tensors in safetensors files: streamed while they are hashed, checked by header before anything is allocated.

The format is 8 bytes of header length, a JSON header, and the raw tensors (huggingface/safetensors, README "Format").
We write it ourselves because the library can neither hash while writing nor show each write to a fault test; it reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sigma.core.errors import SigmaError
from sigma.core.files import write_durable

ALIASES_KEY = "aliases"
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TensorFileError(SigmaError, ValueError):
    """A file that is not the safetensors file it should be."""


class Spec(NamedTuple):
    """What the header says of one tensor: safetensors dtype name and shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """The headers that these tensors would have. Raises TensorFileError on a dtype that we do not save."""
    return {name: Spec(_dtype_name(name, tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}


def _dtype_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _DTYPE_NAMES:
        raise TensorFileError(f"tensor {name!r} has dtype {tensor.dtype}, which checkpoints cannot hold")
    return _DTYPE_NAMES[tensor.dtype]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file, force it to the disk and return its SHA-256; equal tensors give equal bytes.

    Tensors that share storage (tied weights) are stored once and named as aliases in the metadata.
    Raises OSError, TensorFileError.
    """
    aliases = _find_aliases(tensors)
    stored = sorted(tensors.keys() - aliases.keys(), key=lambda name: (-tensors[name].element_size(), name))
    header = _header(stored, tensors, aliases)

    def write(file: BinaryIO) -> None:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in stored:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                file.write(flat.view(torch.uint8).numpy().data)

    return write_durable(path, write)


def _find_aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key in first:
            aliases[name] = first[key]
        first.setdefault(key, name)
    return aliases


def _header(stored: Iterable[str], tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> bytes:
    metadata = {"format": "pt"} | ({ALIASES_KEY: json.dumps(aliases)} if aliases else {})
    entries: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name in stored:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _dtype_name(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # the tensors start aligned


def read_specs(path: Path) -> dict[str, Spec]:
    """Names, dtypes and shapes from the header, aliases included; no tensor is allocated.

    Raises TensorFileError when the header does not describe exactly the bytes of the file.
    """
    try:
        with safe_open(path, framework="pt") as file:  # checks offsets against the file size
            specs = {}
            for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                view = file.get_slice(name)
                specs[name] = Spec(view.get_dtype(), tuple(view.get_shape()))
            aliases = _read_aliases(path, file.metadata(), specs)
    except SafetensorError as error:
        raise TensorFileError(f"{path}: {error}") from error
    return specs | {name: specs[original] for name, original in aliases.items()}


def _read_aliases(path: Path, metadata: Mapping[str, str] | None, specs: Mapping[str, Spec]) -> dict[str, str]:
    aliases: dict[str, str] = json.loads((metadata or {}).get(ALIASES_KEY, "{}"))
    if unknown := aliases.values() - specs.keys():
        raise TensorFileError(f"{path}: aliases of missing tensors {sorted(unknown)}")
    return aliases


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors on the CPU, in memory of their own; aliases are the same tensor object.

    Raises TensorFileError.
    """
    specs = read_specs(path)
    try:
        with safe_open(path, framework="pt") as file:
            # Clones, because a mapped tensor keeps the file open (Windows then cannot delete it) and lies at another
            # alignment than a fresh one, which can change the last bit of a vectorised sum.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            aliases = _read_aliases(path, file.metadata(), specs)
    except SafetensorError as error:
        raise TensorFileError(f"{path}: {error}") from error
    return tensors | {name: tensors[original] for name, original in aliases.items()}

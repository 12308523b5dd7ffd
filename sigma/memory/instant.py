"""INSTANT, mode M0: autograd keeps each tensor once and recomputes norms and activations exactly.

A *region* is a cheap function (a norm, an activation with its sub-norm) between large products. Without INSTANT,
autograd keeps what happens inside the region and the product behind it keeps the region's output. With it, only the
region's inputs are kept: what was saved inside, and the output that a product saved (`consuming`), are replaced by a
number, and come back when the backward pass asks, by running the region once more on the same inputs under the same
autocast. Same operations on the same bits give the same bits, so gradients are equal, not close. Regions must be
deterministic: no dropout.

A model says which of its modules have regions by the class attribute `instant_regions` (their names), and wraps each
in `recompute`. `patch` switches them on, `require_patched` refuses to run a model that promised INSTANT and has not
been patched. Counters: `instant.region_forward`, and `instant.recompute` where a region really ran again.
Reference for the aim (exact selective recomputation): Korthikanti et al., 2205.05198.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from sigma.core.errors import SigmaError
from sigma_kernels import counters

Result = TypeVar("Result")
_PATCHED = "_instant_patched"


class InstantError(SigmaError, RuntimeError):
    """INSTANT was promised and is not in force, or a region did not repeat itself; the message says what to do."""


def patch(model: nn.Module) -> int:
    """Switch on every region of `model`; returns how many modules have one.

    Raises InstantError when there is none: nothing would be saved, and nobody would notice.
    """
    owners = _region_owners(model)
    if not owners:
        raise InstantError(
            f"{type(model).__name__} has no INSTANT region (no module class defines `instant_regions`);"
            " switch INSTANT off (--no-instant-enabled) or patch the model that holds the layers"
        )
    for module in owners:
        module.__dict__[_PATCHED] = True
    return len(owners)


def unpatch(model: nn.Module) -> None:
    """Switch every region of `model` off again."""
    for module in _region_owners(model):
        module.__dict__[_PATCHED] = False


def require_patched(model: nn.Module) -> None:
    """Raise InstantError when `model.config.instant_enabled` is set and a region of the model is not switched on."""
    if not getattr(model.config, "instant_enabled", False):
        return
    owners = _region_owners(model)
    if not owners or not all(_is_patched(module) for module in owners):
        raise InstantError(
            "this model was configured with instant_enabled=True but has not been patched; call"
            " sigma.memory.instant.patch(model) before its first forward, or set config.instant_enabled = False"
        )


def _region_owners(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if getattr(type(module), "instant_regions", ())]


def _is_patched(module: nn.Module) -> bool:
    return module.__dict__.get(_PATCHED, False)


_live: WeakValueDictionary[int, _Region] = WeakValueDictionary()
"""The region that made a storage, by the address of the storage object, as long as autograd needs the region."""

_thread = threading.local()


def recompute(module: nn.Module, fn: Callable[..., Result], *tensors: Tensor) -> Result:
    """`fn(*tensors)`, a tensor or a tuple of tensors, as a region of `module`.

    Parameters that `fn` reads from its closure get their gradients as usual; every activation that it reads must be
    among `tensors`. Exactly `fn(*tensors)` when `module` is not patched or no gradient is recorded; and inside
    torch.compile, whose partitioner decides by itself to recompute cheap operations (nothing is counted there). A
    region inside a region is part of the outer one.
    """
    if not _is_patched(module) or _idle():
        return fn(*tensors)
    counters.add("instant.region_forward")
    region = _Region(fn, tensors)
    with _inside_region(), saved_tensors_hooks(region.pack, region.unpack):
        result = fn(*tensors)
    region.register(_as_tuple(result))
    return result


def consuming(*tensors: Tensor) -> AbstractContextManager[Any]:
    """Around operations that save `tensors`: those that a region made are noted instead of kept.

    Other tensors that the operations save are kept as if this context were not there.
    """
    if _idle() or not any(_address(t) in _live for t in tensors):
        return nullcontext()
    outer = torch._C._autograd._top_saved_tensors_default_hooks(False)  # pyright: ignore[reportAttributeAccessIssue]
    outer_pack, outer_unpack = outer or (_same, _same)

    def pack(tensor: Tensor) -> Any:
        return _slot_of(tensor) or _Kept(outer_pack(tensor))

    def unpack(packed: _Slot | _Kept) -> Tensor:
        return packed.region.unpack(packed) if isinstance(packed, _Slot) else outer_unpack(packed.value)

    return saved_tensors_hooks(pack, unpack)


def _idle() -> bool:
    """Whether nothing is to be noted: no gradient, a compiler at work, or a region that takes care of all of it."""
    return torch.compiler.is_compiling() or not torch.is_grad_enabled() or getattr(_thread, "inside", False)


@contextmanager
def _inside_region() -> Iterator[None]:
    _thread.inside = True
    try:
        yield
    finally:
        _thread.inside = False


def _same(value: Any) -> Any:
    return value


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _slot_of(tensor: Tensor) -> _Slot | None:
    region = _live.get(_address(tensor))
    note = region.note(tensor) if region is not None else None
    return region.add_slot(note) if region is not None and note is not None else None


@dataclass(frozen=True)
class _OutputNote:
    """How to find a saved tensor in the output of its region: which output, and how it lay in that storage."""

    output: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Slot:
    """What autograd holds in place of a tensor that the region can bring back."""

    region: _Region
    index: int


@dataclass(eq=False)
class _Kept:
    """What autograd holds for a tensor that stays."""

    value: Any


@dataclass(frozen=True)
class _Output:
    """An output of a region, without holding it."""

    storage: StorageWeakRef
    version: int
    dtype: torch.dtype
    index: int


class _KeepInputs(torch.autograd.Function):
    """A node of the graph whose only purpose is to hold tensors the way autograd holds them (versions, outer hooks)."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("this node is not part of any result")


class _Region:
    """One execution of a region: its inputs, and the slots that stand for what it can bring back."""

    def __init__(self, fn: Callable[..., Any], tensors: tuple[Tensor, ...]) -> None:
        self._fn = fn
        self._requires_grad = [t.requires_grad for t in tensors]
        with consuming(*tensors):  # the input may itself be the output of a region
            anchor = torch.empty(0, requires_grad=True)
            # the tensor, not its node: with the tensor gone, the node would give up what it holds
            self._keeper: Any = _KeepInputs.apply(anchor, *(t.detach() for t in tensors))
        device = tensors[0].device.type
        self._autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        self._notes: list[_OutputNote | None] = []  # one for each slot; None is a tensor saved inside the region
        self._outputs: dict[int, _Output] = {}
        self._restored: dict[int, Tensor] = {}

    def pack(self, tensor: Tensor) -> _Slot:
        """Stand in for a tensor that was saved inside the region."""
        return self.add_slot(None)

    def add_slot(self, note: _OutputNote | None) -> _Slot:
        self._notes.append(note)
        return _Slot(self, len(self._notes) - 1)

    def register(self, outputs: tuple[Tensor, ...]) -> None:
        """Remember the outputs, so that `consuming` finds their region."""
        for index, out in enumerate(outputs):
            storage = out.untyped_storage()
            self._outputs[storage._cdata] = _Output(StorageWeakRef(storage), out._version, out.dtype, index)
            _live[storage._cdata] = self

    def note(self, tensor: Tensor) -> _OutputNote | None:
        """Where `tensor` lies in an output of this region; None when it is not one, or was changed since."""
        out = self._outputs[_address(tensor)]
        if out.storage.expired() or out.version != tensor._version or out.dtype != tensor.dtype:
            return None
        return _OutputNote(out.index, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def unpack(self, slot: _Slot) -> Tensor:
        """The tensor of a slot, bit for bit. Each slot is given out once for each time that the region runs again."""
        if slot.index not in self._restored:
            self._run_again()
        return self._restored.pop(slot.index)

    def _run_again(self) -> None:
        counters.add("instant.recompute")
        saved: list[Tensor] = []
        device, dtype, enabled = self._autocast
        inputs = [
            t.detach().requires_grad_(r)
            for t, r in zip(self._keeper.grad_fn.saved_tensors, self._requires_grad, strict=True)
        ]
        with (
            torch.enable_grad(),
            _inside_region(),
            torch.autocast(device, dtype=dtype, enabled=enabled),
            saved_tensors_hooks(lambda t: saved.append(t.detach()), _same),
        ):
            outputs = [out.detach() for out in _as_tuple(self._fn(*inputs))]
        inside = [index for index, note in enumerate(self._notes) if note is None]
        if len(inside) != len(saved):
            raise InstantError(
                f"an INSTANT region saved {len(inside)} tensors in the forward pass and {len(saved)} when it ran again;"
                " it must not depend on anything that changes in between"
            )
        self._restored = dict(zip(inside, saved, strict=True))
        for index, note in enumerate(self._notes):
            if note is not None:
                self._restored[index] = outputs[note.output].as_strided(note.size, note.stride, note.offset)


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def audit_saved_bytes(fn: Callable[[], Any], *modules: nn.Module) -> int:
    """Bytes of activations that autograd keeps for the result of `fn()`, each storage counted once.

    Parameters and buffers of `modules` are not activations and do not count. What was saved for a graph that is
    already gone when `fn` returns does not count either.
    """
    owned = {_address(t) for module in modules for t in (*module.parameters(), *module.buffers())}
    kept: WeakSet[_Kept] = WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        holder = _Kept(tensor)
        kept.add(holder)
        return holder

    with saved_tensors_hooks(pack, lambda holder: holder.value):
        result = fn()  # holds the graph until the storages have been counted
    storages = {_address(holder.value): holder.value.untyped_storage().nbytes() for holder in kept}
    del result
    return sum(size for address, size in storages.items() if address not in owned)

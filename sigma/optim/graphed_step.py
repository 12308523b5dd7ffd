"""The step of the matrix optimizer from CUDA graphs: hundreds of launches for the price of one, and the same bits.

A graph repeats launches with the arguments that they had. What differs between two steps reaches them through tensors
that stay: learning rates, copies of `found_inf` and `clip`, and the tables of addresses by which the kernels find
gradients and weights, written before each replay. What the host decides makes another graph (`GraphedStep._kind`).
The first step of each kind is eager, because it compiles the kernels, and so is every step that cannot be replayed.
AdamW stays eager: its kernels carry addresses, and it is few launches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sigma.optim.cuda_graph import CudaGraphs, Graphs, Replay
from sigma.optim.matrix import Eager, MatrixOptimizer
from sigma_kernels import counters

MOST_GRAPHS = 8
"""Kinds of steps that are captured; block-periodic Muon has two, c3o one without credit and one with it."""
REPLAYED, EAGER = "optim_step.replayed", "optim_step.eager"
OnEvent = Callable[..., None]


@dataclass(frozen=True)
class Captured:
    """A step as a graph, the tensors that it reads in place of the step's own, and what it counted on the host."""

    replay: Replay
    found_inf: Tensor | None
    clip: Tensor | None
    counted: Mapping[str, int]

    def run(self, found_inf: Tensor | None, clip: Tensor | None) -> None:
        """One step with these scalars."""
        for mine, given in ((self.found_inf, found_inf), (self.clip, clip)):
            if mine is not None and given is not None:
                mine.copy_(given)
        self.replay()
        counters.add_all(self.counted)


class GraphedStep:
    """Steps of `matrix`, replayed where that computes the same. `reason` says why the last one was not, or is None.

    `wanted` is `--optim-graph`. Counts `optim_step.replayed` and `optim_step.eager`.
    """

    def __init__(self, matrix: MatrixOptimizer, graphs: Graphs | None = None, *, wanted: bool = True) -> None:
        self._matrix, self._graphs = matrix, graphs or CudaGraphs()
        self._never = self._graphs.why_never(matrix.batches) if wanted else "it is off (--optim-graph switches it on)"
        self._captured: dict[Hashable, Captured] = {}
        self._warm: set[Hashable] = set()
        self._places: tuple[int, ...] = ()
        self._told: set[str] = set()
        self._on_event: OnEvent = lambda event, **details: None
        self.reason: str | None = None

    def listen(self, on_event: OnEvent) -> None:
        """Hear of each reason that keeps a step eager against expectation, once (`optim_graph_unused`)."""
        self._on_event = on_event

    def why_never(self) -> str | None:
        """Why no step will be replayed, as far as that is known before the first one."""
        if self._never is not None:
            return self._never
        phase = self._matrix.direction.phase(1)
        return phase.reason if isinstance(phase, Eager) else None

    @torch.no_grad()
    def step(self, found_inf: Tensor, clip: Tensor | None) -> None:
        """`MatrixOptimizer.step` with these scalars, bit for bit."""
        matrix = self._matrix
        matrix.found_inf, matrix.clip = found_inf, clip
        matrix.begin()
        captured = self._find()
        if captured is None:
            counters.add(EAGER)
            matrix.update()
        else:
            counters.add(REPLAYED)
            captured.run(found_inf, clip)

    def release(self) -> bool:
        """Let go of every graph with its memory, for good; whether there was one."""
        if not self._captured:
            return False
        self._forget()
        self._switch_off("memory ran out")
        return True

    def metrics(self) -> dict[str, Tensor | float]:
        """What the optimizer reports, and its steps of each way over the run's life."""
        steps = {"optim_replayed_steps": counters.get(REPLAYED), "optim_eager_steps": counters.get(EAGER)}
        return self._matrix.metrics() | steps

    def _find(self) -> Captured | None:
        """The graph of this step, captured now if it is the second of its kind; else None and a `reason`."""
        batches = self._matrix.batches
        self.reason = self._never
        if self.reason is None and (reason := self._graphs.why_not_now(batches)) is not None:
            self._tell(reason)
        if self.reason is not None:
            return None
        phase = self._matrix.phase()
        if isinstance(phase, Eager):
            self.reason = phase.reason
            return None
        self._look_for_moves()
        return self._of_kind(self._kind(phase))

    def _of_kind(self, kind: Hashable) -> Captured | None:
        if kind not in self._warm:
            self._warm.add(kind)
            self.reason = "the first step of its kind compiles the kernels"
        elif kind not in self._captured:
            if len(self._captured) == MOST_GRAPHS:
                self._tell(f"there are more than {MOST_GRAPHS} kinds of steps")
            else:
                self._capture(kind)
        return self._captured.get(kind)

    def _kind(self, phase: Hashable) -> Hashable:
        """What the launches depend on besides values; on the way the tables are written, outside of any graph."""
        matrix = self._matrix
        scalars = tuple(None if t is None else t.dtype for t in (matrix.found_inf, matrix.clip))
        return phase, scalars, tuple(batch.write_tables(matrix.direction.dtype) for batch in matrix.batches)

    def _look_for_moves(self) -> None:
        """Rates and state are found where they were at the capture: when one has moved, every graph is void."""
        places = tuple(t.data_ptr() for b in self._matrix.batches for t in (b.lr, *b.state.values()))
        if places != self._places:
            self._forget()
            self._places = places

    def _forget(self) -> None:
        if self._captured:
            self._graphs.settle()
        self._captured.clear()
        self._warm.clear()

    def _capture(self, kind: Hashable) -> None:
        matrix = self._matrix
        given = matrix.found_inf, matrix.clip
        found_inf, clip = (None if t is None else t.clone() for t in given)
        matrix.found_inf, matrix.clip = found_inf, clip
        try:
            with counters.recorded() as counted:
                replay = self._graphs.capture(matrix.update)
        except RuntimeError as error:
            self._forget()
            self._switch_off(f"capturing failed: {str(error).splitlines()[0][:200]}")
        else:
            self._captured[kind] = Captured(replay, found_inf, clip, counted)
        finally:
            matrix.found_inf, matrix.clip = given

    def _switch_off(self, reason: str) -> None:
        self._never = reason
        self._tell(reason)

    def _tell(self, reason: str) -> None:
        self.reason = reason
        if reason not in self._told:
            self._told.add(reason)
            self._on_event("optim_graph_unused", reason=reason)

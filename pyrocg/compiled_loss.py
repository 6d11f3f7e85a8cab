"""The loss of a training step and its gradients as one compiled program."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import pyro
import torch
from torch import Tensor, fx, nn
from torch.func import functionalize

from pyrocg.conditions import gpus_of
from pyrocg.energies.abstract import Energy
from pyrocg.networks import in_place_of
from pyrocg.target import BoltzmannTarget

__all__ = ["CompiledLoss", "backward"]

_ROUNDING = 1e-2
"""Of a loss, and of the norm of a gradient: atoms that overlap make large numbers."""
_NEGLIGIBLE = 1e-4
"""Of the norm of all gradients."""
_RUNS = 3
"""That are compared: torch records a CUDA graph at the second, and replays it from then on."""
_TRIES = 3
"""Batches until a program that gives other numbers is taken for wrong."""

_Program = Callable[..., Any]


def backward(elbo: nn.Module, num_samples: int) -> Tensor:
    """Return the loss per sample; its gradients are in the parameters.

    Args:
        elbo: a module that returns the loss of n samples, as Pyro's ELBOs make it.
        num_samples: n.
    """
    loss = elbo(num_samples) / num_samples
    loss.backward()
    return loss.detach()


class CompiledLoss:
    """What :func:`backward` does, as one program of tensor operations compiled by torch.

    At the first call with finite gradients Pyro's model and guide are traced, with the derivatives
    of their loss, to a graph of tensor operations, which is compiled: neither Pyro nor autograd
    runs in later calls. The energy stays what it is, and is called as before. The program draws the
    same random numbers, and is compared with :func:`backward` when it is made (which counts as no
    energy calls). If it cannot be had, or is wrong, a warning says so and :func:`backward` takes
    its place.

    What Python decides is decided once. A Pyro program whose sites or shapes change from call to
    call, or a module that keeps numbers of its own elsewhere than in parameters and buffers changed
    in place, must not be compiled; nor may target or loss change later. What it decides by values
    cannot be compiled: Pyro's ``Trace_ELBO`` and :class:`~pyrocg.objectives.ForwardKLELBO` ask for
    numbers on the way, and so do distributions built with ``validate_args=True``. Others are not
    validated. While the program is made no other thread may use the model.

    Args:
        elbo: as of :func:`backward`.
        target: the target density of its model.
        num_samples: n of every call.

    Raises:
        ValueError: the energy has parameters to train.

    Example:
        >>> import torch, pyrocg
        >>> real = torch.zeros(2, dtype=torch.bool)
        >>> target = pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0)
        >>> cg = pyrocg.CoarseGrainedModel(
        ...     target,
        ...     pyrocg.IdentityCoordinates(2),
        ...     prior=pyrocg.StandardNormalPrior(1),
        ...     decoder=pyrocg.GaussianDecoder(real, 1, (4,)),
        ...     encoder=pyrocg.GaussianEncoder(real, 1, (4,)),
        ... )
        >>> elbo = pyrocg.PathGradientELBO()(cg.model, cg.guide)
        >>> with torch.random.fork_rng():
        ...     expected = backward(elbo, 8)
        >>> bool((CompiledLoss(elbo, target, 8)() - expected).abs() < 1e-4)
        True
    """

    def __init__(self, elbo: nn.Module, target: BoltzmannTarget, num_samples: int) -> None:
        if any(p.requires_grad for p in target.energy.parameters()):
            raise ValueError(
                "expected an energy without parameters to train, got a "
                f"{type(target.energy).__name__} with some; leave out compile=True"
            )
        self._elbo, self._target, self._num_samples = elbo, target, num_samples
        self._energy = target.energy  # of which the operation knows the number alone
        inside = {id(t) for t in (*self._energy.parameters(), *self._energy.buffers())}
        every = [*elbo.parameters(), *elbo.buffers()]
        self._tensors = [t for t in every if id(t) not in inside]
        self._trained = [p for p in elbo.parameters() if p.requires_grad]
        self._program: _Program | None = None
        self._tries = _TRIES

    def __call__(self) -> Tensor:
        """Return the loss per sample; its gradients are in the parameters, those of before gone."""
        if self._tries:
            before = _State.of(self._elbo, self._energy)
            loss = self._backward()
            if not self._ready(loss, before):
                return loss
            before.put_back()
        return self._backward() if self._program is None else self._run(self._program)

    def _backward(self) -> Tensor:
        for parameter in self._trained:
            parameter.grad = None
        return backward(self._elbo, self._num_samples)

    def _run(self, program: _Program) -> Tensor:
        if any(t.is_cuda for t in self._trained):
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            loss, *gradients = program(*(t.detach() for t in self._tensors))
            for parameter, gradient in zip(self._trained, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            return loss.clone()

    def _ready(self, loss: Tensor, before: _State) -> bool:
        """Whether there is a program that gives this loss and the gradients in the parameters."""
        expected = loss, self._gradients()
        if not all(bool(t.isfinite().all()) for t in (loss, *expected[1])):
            return False
        after = _State.of(self._elbo, self._energy)
        program, reason = self._program, ""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"torch\.")
                program = program or _compiled(self._traced())
                for _ in range(_RUNS):
                    before.put_back()
                    reason = reason or _difference(self._run(program), self._gradients(), *expected)
        except Exception as error:
            program, reason = None, _first_words(error)
        self._program, self._tries = program, self._tries - 1 if reason and program else 0
        if reason and not self._tries:
            self._program = None
            warnings.warn(
                f"the loss was not compiled ({reason}); steps are computed as without compile=True",
                RuntimeWarning,
                stacklevel=3,
            )
        if not reason:
            return True
        after.put_back()
        for parameter, gradient in zip(self._trained, expected[1], strict=True):
            parameter.grad = gradient
        return False

    def _gradients(self) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained]

    def _traced(self) -> fx.GraphModule:
        """The graph from all tensors to the loss and its gradients, without mutations."""
        _check_buffers(self._elbo, self._tensors)

        def differentiate(*values: Tensor) -> tuple[Tensor | None, ...]:
            given = {id(t): value for t, value in zip(self._tensors, values, strict=True)}
            with in_place_of(self._elbo, given):
                loss = self._elbo(self._num_samples) / self._num_samples
            trained = [given[id(p)] for p in self._trained]
            return loss.detach(), *torch.autograd.grad(loss, trained, allow_unused=True)

        values = [t.detach().requires_grad_(t.requires_grad) for t in self._tensors]
        with pyro.validation_enabled(False), _opaque(self._target):
            graph = _trace(differentiate, values)
        return _trace(functionalize(graph), [value.detach() for value in values])


@dataclass(frozen=True)
class _State:
    """Random numbers, buffers and counters of energies, which a step changes."""

    devices: list[int]
    random: list[Tensor]
    buffers: list[tuple[Tensor, Tensor]]
    counters: list[tuple[Energy, Any]]

    @classmethod
    def of(cls, elbo: nn.Module, energy: Energy) -> _State:
        devices = gpus_of(elbo.parameters())
        return cls(
            devices,
            [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)],
            [(buffer, buffer.clone()) for buffer in elbo.buffers()],
            [(m, m.counters) for m in energy.modules() if isinstance(m, Energy)],
        )

    def put_back(self) -> None:
        torch.set_rng_state(self.random[0])
        for device, state in zip(self.devices, self.random[1:], strict=True):
            torch.cuda.set_rng_state(state, device)
        for buffer, value in self.buffers:
            buffer.copy_(value)
        for energy, counters in self.counters:
            energy.counters = counters


def _difference(
    loss: Tensor, gradients: list[Tensor], expected: Tensor, expected_gradients: list[Tensor]
) -> str:
    """Where two results differ by more than rounding, in words; empty if nowhere."""
    if not bool((loss - expected).abs() <= _ROUNDING * (1.0 + expected.abs())):
        return f"its loss is {float(loss):.6g}, not {float(expected):.6g}"
    norms = [gradient.double().norm() for gradient in expected_gradients]
    whole = torch.stack(norms).norm()
    for gradient, other, norm in zip(gradients, expected_gradients, norms, strict=True):
        error = (gradient.double() - other.double()).norm()
        if not bool(error <= _ROUNDING * norm + _NEGLIGIBLE * whole):
            return f"a gradient differs by {float(error / norm):.2g} of its norm"
    return ""


def _first_words(error: Exception) -> str:
    words = " ".join(str(error).split("\n\n")[0].split())
    if "DataDependent" in type(error).__name__ or "unallocated storage" in words:
        return "it decides by values"
    return f"{type(error).__name__}: {words}"


def _check_buffers(elbo: nn.Module, known: Sequence[Tensor]) -> None:
    """Refuse a model whose call has put other buffers in the place of its own."""
    ids = {id(t) for t in known}
    energies = [m for m in elbo.modules() if isinstance(m, Energy)]
    ids |= {id(t) for energy in energies for t in energy.buffers()}
    for name, buffer in elbo.named_buffers():
        if id(buffer) not in ids:
            raise RuntimeError(f"buffer {name} was replaced; change it in place")


def _trace(function: _Program, values: Sequence[Tensor]) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _compiled(graph: fx.GraphModule) -> _Program:
    """Compile what lies before, between and after the energies of a graph."""
    from torch.fx.passes.split_module import split_module

    stages: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        after = max((stages[n] for n in node.all_input_nodes), default=0)
        of_energy = node.target is torch.ops.pyrocg.energy.default
        stages[node] = after // 2 * 2 + 1 if of_energy else after + after % 2
    program = split_module(graph, None, stages.__getitem__)
    options: dict[str, Any] = {"fallback_random": True, "pattern_matcher": False}
    if any(node.meta["val"].is_cuda for node in graph.graph.find_nodes(op="placeholder")):
        options["triton.cudagraphs"] = True
    for name, part in list(program.named_children()):
        if int(name.removeprefix("submod_")) % 2 == 0:
            compiled = torch.compile(part, fullgraph=True, dynamic=False, options=options)
            setattr(program, name, compiled)
    return program


# The energy as one operation


class _OpaqueEnergy(Energy):
    """An energy that is one operation for a tracer."""

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy.event_shape)
        self._key = next(_KEYS)
        _ENERGIES[self._key] = energy

    def _energy(self, x: Tensor) -> Tensor:
        return _EnergyFunction.apply(x, self._key)

    def _note_nonfinite(self, broken: Tensor, x: Tensor) -> None:
        """Not here: the energy itself does."""


class _EnergyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, key: int) -> Tensor:
        energy, gradient = torch.ops.pyrocg.energy(x.detach(), key, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        weights = weights.reshape(-1, *(1 for _ in gradient.shape[1:]))
        return torch.where(weights == 0, 0.0, weights * gradient), None


_KEYS = itertools.count()
_ENERGIES: WeakValueDictionary[int, Energy] = WeakValueDictionary()

torch.library.define("pyrocg::energy", "(Tensor x, int key, bool forces) -> (Tensor, Tensor)")


@torch.library.impl("pyrocg::energy", "CompositeExplicitAutograd")
def _evaluate(x: Tensor, key: int, forces: bool) -> tuple[Tensor, Tensor]:
    """Energies and, if wanted, gradients of a batch, by the energy itself."""
    with torch.enable_grad():
        x = x.clone().requires_grad_(forces)  # the memory of a CUDA graph is used again
        energy = _ENERGIES[key](x)
        gradient = x.new_empty(0)
        if forces:
            gradient = torch.zeros_like(x)
            if energy.requires_grad:
                (gradient,) = torch.autograd.grad(energy.sum(), x, materialize_grads=True)
    return energy.detach().to(x.dtype), gradient


@torch.library.register_fake("pyrocg::energy")
def _shapes(x: Tensor, key: int, forces: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x)), torch.empty_like(x) if forces else x.new_empty(0)


@contextmanager
def _opaque(target: BoltzmannTarget) -> Iterator[None]:
    energy = target.energy
    try:
        target.energy = _OpaqueEnergy(energy)
        yield
    finally:
        target.energy = energy

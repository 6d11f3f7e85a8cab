"""The loss of a training step and its gradients as one compiled program."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakValueDictionary

import pyro
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize

from pyrocg.conditions import gpus_of
from pyrocg.energies.abstract import Energy
from pyrocg.target import BoltzmannTarget

__all__ = ["CompiledLoss", "backward"]

_LARGEST_ERROR = 1e-2
"""Of the gradient's norm: rounding, where atoms overlap, but not another program."""

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

    At the first call Pyro's model and guide are traced, with the derivatives of their loss, to a
    graph of tensor operations, which is compiled: neither Pyro nor autograd runs in later calls.
    The energy stays what it is, and is called as before. The program draws the same random numbers;
    when it is made it is compared with :func:`backward` (energies of that are not counted). If it
    cannot be had, or is wrong, a warning says so and :func:`backward` takes its place.

    What Python decides is decided once: a Pyro program whose sites or shapes change from call to
    call, or which keeps numbers of its own outside of parameters and buffers, must not be compiled.
    What it decides by values cannot be compiled: Pyro's ``Trace_ELBO`` and
    :class:`~pyrocg.objectives.ForwardKLELBO` ask for numbers on the way. Arguments of distributions
    are not validated.

    Args:
        elbo: as of :func:`backward`; its tensors are changed in place alone.
        target: the target density of its model.
        num_samples: n of every call.

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
        self._elbo, self._target, self._num_samples = elbo, target, num_samples
        self._tensors = dict(elbo.named_parameters()) | dict(elbo.named_buffers())
        self._trained = {k: p for k, p in elbo.named_parameters() if p.requires_grad}
        self._program: _Program | None = None
        self._pending = True

    def __call__(self) -> Tensor:
        """Return the loss per sample; its gradients are in the parameters, those of before gone."""
        if self._pending:
            self._make()
        if self._program is None:
            return self._backward()
        return self._run(self._program)

    def _backward(self) -> Tensor:
        for parameter in self._trained.values():
            parameter.grad = None
        return backward(self._elbo, self._num_samples)

    def _run(self, program: _Program) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            loss, *gradients = program(*(t.detach() for t in self._tensors.values()))
            for parameter, gradient in zip(self._trained.values(), gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            return loss.clone()

    def _make(self) -> None:
        """Make the program; not yet, if this call's gradients are not finite."""
        devices = gpus_of(self._trained.values())
        with ExitStack() as stack:
            for energy in (m for m in self._target.modules() if isinstance(m, Energy)):
                stack.enter_context(energy.uncounted())
            with torch.random.fork_rng(devices):
                expected = self._result(self._backward)
            if not bool(expected.isfinite().all()):
                return
            self._pending = False
            try:
                with torch.random.fork_rng(devices), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch's own
                    program = _compiled(self._traced())
                    error = self._result(lambda: self._run(program)) - expected
                worst = float(error.norm() / expected.norm())
                reason = f"its gradients differ by {worst:.2g} of their norm"
            except Exception as problem:
                first = " ".join(str(problem).split("\n\n")[0].split())
                worst, reason = float("inf"), f"{type(problem).__name__}: {first}"
        if worst <= _LARGEST_ERROR:
            self._program = program
        else:
            warnings.warn(
                f"the loss was not compiled ({reason}); steps are computed as without compile=True",
                RuntimeWarning,
                stacklevel=2,
            )

    def _result(self, call: Callable[[], Tensor]) -> Tensor:
        """Loss and gradients as one vector."""
        loss = call()
        found = [loss.reshape(1).double()]
        for parameter in self._trained.values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found.append(gradient.reshape(-1).double())
        return torch.cat(found)

    def _traced(self) -> fx.GraphModule:
        """The graph from all tensors to the loss and its gradients, without mutations."""

        def differentiate(*values: Tensor) -> tuple[Tensor | None, ...]:
            given = dict(zip(self._tensors, values, strict=True))
            loss = functional_call(self._elbo, given, (self._num_samples,)) / self._num_samples
            trained = [given[name] for name in self._trained]
            return loss.detach(), *torch.autograd.grad(loss, trained, allow_unused=True)

        values = [t.detach().requires_grad_(t.requires_grad) for t in self._tensors.values()]
        with pyro.validation_enabled(False), _opaque(self._target):
            graph = _trace(differentiate, values)
        return _trace(functionalize(graph), [value.detach() for value in values])


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
        x = x.detach().requires_grad_(forces)
        energy = _ENERGIES[key](x)
        gradient = torch.autograd.grad(energy.sum(), x)[0] if forces else x.new_empty(0)
    return energy.detach(), gradient


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

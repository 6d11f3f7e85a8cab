"""The logic of CUDA graphs, without a GPU: a stand-in records operations and repeats them."""

import contextlib
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyrocg.energies.graphed import Graphed


class Recorded(TorchDispatchMode):
    """Operations that are repeated on the tensors of the first time, as a CUDA graph does it."""

    def __init__(self):
        super().__init__()
        self.steps, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        self.replays += 1
        for func, args, kwargs, out in self.steps:
            out.copy_(func(*args, **kwargs))


@pytest.fixture
def made(monkeypatch):
    """The graphs that are made on a machine that seems to have CUDA."""
    graphs = []

    def graph():
        graphs.append(Recorded())
        return graphs[-1]

    stream = types.SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda recorded: recorded)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return graphs


def columns(x):
    return x.square().sum((0, 1)), 2 * x


def check(graphed, size):
    x = torch.randn(3, 5, size)
    for found, expected in zip(graphed(x), columns(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_size_that_comes_again_is_captured_and_has_the_numbers_of_every_call(made):
    graphed = Graphed(columns)
    for _ in range(2):
        check(graphed, 16)
    assert not made
    for _ in range(4):
        check(graphed, 16)
    assert [g.replays for g in made] == [5]  # one of them checked it


def test_the_sizes_used_last_are_kept_and_large_batches_are_not_captured(made):
    graphed = Graphed(columns, largest=64, most=2)
    for size in (16, 32, 16, 48, 80):
        for _ in range(3):
            check(graphed, size)
    assert len(made) == 3
    replays = [g.replays for g in made]
    check(graphed, 16)
    check(graphed, 48)
    check(graphed, 32)  # dropped, and to come twice more before it is captured again
    assert [g.replays for g in made] == [replays[0] + 1, replays[1], replays[2] + 1]


def test_within_another_capture_there_is_none(made, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    graphed = Graphed(columns)
    for _ in range(5):
        check(graphed, 16)
    assert not made


def test_a_capture_that_fails_is_said_once(made, monkeypatch):
    def refused(_):
        raise RuntimeError("operation not permitted when stream is capturing\n\nmore words")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    graphed = Graphed(columns)
    check(graphed, 16)
    check(graphed, 16)
    with pytest.warns(RuntimeWarning, match=r"no CUDA graph \(operation not permitted when stream"):
        check(graphed, 16)
    check(graphed, 16)


def test_a_graph_with_other_numbers_is_not_used(made):
    torch.manual_seed(0)
    shift = iter(range(100))

    def drifting(x):  # as a value that was read on the CPU while capturing
        return columns(x + next(shift))

    graphed = Graphed(drifting)
    x = torch.randn(3, 5, 16)
    graphed(x), graphed(x)
    with pytest.warns(RuntimeWarning, match="its numbers are not those of the kernels"):
        graphed(x)
    assert not graphed._graphs

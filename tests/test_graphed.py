"""The logic of CUDA graphs, without a GPU: a stand-in records operations and repeats them."""

import contextlib
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyrocg.energies import graphed as module
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


class Stream:
    def __init__(self, name, events):
        self.name, self.events = name, events

    def wait_stream(self, other):
        self.events.append(f"{self.name} waits for {other.name}")


class Machine:
    """One that seems to have CUDA: the graphs made on it, and what happened on which stream."""

    def __init__(self, monkeypatch):
        self.graphs, self.events, self.on = [], [], "main"
        self.streams = {name: Stream(name, self.events) for name in ("main", "beside", "third")}
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self.graph)
        monkeypatch.setattr(torch.cuda, "graph", self.capture)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: self.streams["beside"])
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.streams[self.on])
        monkeypatch.setattr(torch.cuda, "stream", self.switched)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def graph(self):
        self.graphs.append(Recorded())
        return self.graphs[-1]

    @contextlib.contextmanager
    def switched(self, stream):
        before, self.on = self.on, stream.name
        try:
            yield
        finally:
            self.on = before

    @contextlib.contextmanager
    def capture(self, recorded, stream, capture_error_mode):
        self.events.append(f"{capture_error_mode} capture on {stream.name}, from {self.on}")
        with recorded:
            yield

    def replays(self):
        return [g.replays for g in self.graphs]


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def columns(x):
    return x.square().sum((0, 1)), 2 * x


def check(graphed, size):
    x = torch.randn(3, 5, size)
    for found, expected in zip(graphed(x), columns(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_size_that_comes_again_is_captured_and_has_the_numbers_of_every_call(machine):
    graphed = Graphed(columns, largest=64)
    for _ in range(2):
        check(graphed, 16)
    assert not machine.graphs
    for _ in range(4):
        check(graphed, 16)
    assert machine.replays() == [5]  # one of them was compared
    for _ in range(4):
        check(graphed, 80)
    assert machine.replays() == [5]


def test_a_graph_has_positions_of_its_own(machine):
    graphed = Graphed(columns, largest=64)
    given = [torch.randn(3, 5, 16) for _ in range(5)]
    before = [x.clone() for x in given]
    for x in given:
        graphed(x)
    assert all(map(torch.equal, given, before))


def test_a_capture_warms_up_beside_the_callers_stream(machine):
    def watched(x):
        machine.events.append(f"call on {machine.on}")
        return columns(x)

    graphed = Graphed(watched, largest=64)
    for _ in range(3):
        graphed(torch.randn(3, 5, 16))
    assert machine.events == [
        *2 * ["call on main"],
        "beside waits for main",
        *3 * ["call on beside"],
        "thread_local capture on beside, from beside",
        "call on beside",
        "main waits for beside",
        "call on main",  # to compare with
    ]


def test_a_graph_makes_room_when_it_was_long_idle(machine, monkeypatch):
    monkeypatch.setattr(module, "_IDLE", 10)
    graphed = Graphed(columns, largest=64, most=2)
    for _ in range(3):
        for size in (16, 32, 48):
            check(graphed, size)
    assert machine.replays() == [2, 2]  # the third size waits
    for _ in range(6):
        check(graphed, 32)
        check(graphed, 48)
    assert machine.replays()[:2] == [2, 8]
    assert machine.replays()[2] > 1  # in the place of the first
    check(graphed, 16)
    check(graphed, 32)
    assert machine.replays()[:2] == [2, 9]


def test_within_another_capture_there_is_none(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    graphed = Graphed(columns, largest=64)
    for _ in range(5):
        check(graphed, 16)
    assert not machine.graphs


def test_other_streams_and_threads_do_not_use_the_buffers_of_a_graph(machine):
    graphed = Graphed(columns, largest=64)
    for _ in range(3):
        check(graphed, 16)
    replays = machine.replays()
    machine.on = "third"
    check(graphed, 16)
    machine.on = "main"
    thread = threading.Thread(target=check, args=(graphed, 16))
    thread.start()
    thread.join()
    assert machine.replays() == replays
    check(graphed, 16)
    assert machine.replays() == [replays[0] + 1]


def test_two_threads_do_not_capture_at_once(machine):
    graphed = Graphed(columns, largest=64)
    with module._CAPTURING:
        for _ in range(4):
            check(graphed, 16)
    assert not machine.graphs
    check(graphed, 16)
    assert machine.replays() == [2]


def test_a_capture_that_fails_is_said_once(machine, monkeypatch):
    @contextlib.contextmanager
    def refused(_, stream, capture_error_mode):
        try:
            yield
        finally:
            raise RuntimeError("capture failed due to a previous error")

    def syncing(x):
        if machine.on == "beside" and len(calls) == 3:
            raise RuntimeError("operation not permitted when stream is capturing\n\nmore words")
        calls.append(machine.on)
        return columns(x)

    monkeypatch.setattr(torch.cuda, "graph", refused)
    graphed, calls = Graphed(lambda x: columns(x), largest=64), []
    for _ in range(2):
        check(graphed, 16)
    graphed._columns = syncing
    graphed._graphs["another"] = None
    with pytest.warns(RuntimeWarning, match=r"no CUDA graph \(operation not permitted when stream"):
        check(graphed, 16)
    assert machine.on == "main"
    assert not graphed._graphs
    check(graphed, 16)


def test_a_graph_with_other_numbers_is_not_used(machine):
    torch.manual_seed(0)
    shift = iter(range(100))

    def drifting(x):  # as a value that was read on the CPU while capturing
        return columns(x + next(shift))

    def unrecorded(x):  # as kernels on a stream that is not captured
        with torch.utils._python_dispatch._disable_current_modes():
            return columns(x)

    for wrong in (drifting, unrecorded):
        graphed = Graphed(wrong, largest=64)
        x = torch.randn(3, 5, 16)
        graphed(x), graphed(x)
        with pytest.warns(RuntimeWarning, match="its numbers are not those of the kernels"):
            graphed(x)
        assert not graphed._graphs

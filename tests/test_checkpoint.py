import errno
import os

import pytest
import torch

from pyrocg.checkpoint import load_state, put_state, save_state, write_atomically

STATE = {"tensor": torch.arange(3), "plain": {"a": [1.0, float("-inf")], "b": None}, "word": "x"}


def test_round_trip(tmp_path):
    save_state(tmp_path / "state.pt", STATE)
    back = load_state(tmp_path / "state.pt")
    assert torch.equal(back.pop("tensor"), STATE["tensor"])
    assert back == {key: value for key, value in STATE.items() if key != "tensor"}


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_state(path, STATE)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    message = r"expected to write .*state\.pt, got: No space left on device; make room"
    with pytest.raises(OSError, match=message):
        save_state(path, {"new": 1})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_while_torch_writes_is_an_os_error(tmp_path):
    def write(state, file):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", write)
        with pytest.raises(OSError, match=r"cannot write .*state.pt: Pytorch"):
            save_state(tmp_path / "state.pt", STATE)
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_the_old_file(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_and_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint at"):
        load_state(tmp_path / "none.pt")
    with pytest.raises(OSError):
        save_state(tmp_path / "none" / "state.pt", STATE)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "state.pt"
    path.write_text("not a checkpoint")
    with pytest.raises(ValueError, match="expected a checkpoint of tensors"):
        load_state(path)
    save_state(path, [1, 2])
    with pytest.raises(ValueError, match="expected a dictionary"):
        load_state(path)


def test_code_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    torch.save({"trap": Trap()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="cannot read it"):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "trapped").exists()


def test_the_state_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected the state of this Linear in .*state\.pt, got"):
        put_state(torch.nn.Linear(2, 1), torch.nn.Linear(3, 1).state_dict(), tmp_path / "state.pt")

"""Checkpoints are read without running what they carry; tensors keep type, view and value."""
import os

import pytest
import torch
from torch import nn

from bafe_nb import bafenet, checkpoints
from bafe_nb.boxes import InputError


class Command:
    """Pickles to a call of any function."""
    def __init__(self, function, *args): self.call = (function, args)
    def __reduce__(self): return self.call


@pytest.mark.parametrize("function, args", [(os.system, ("touch {}",)), (eval, ("open('{}', 'w')",)), (exec, ("open('{}', 'w')",)),
                                            (getattr, (os, "system")), (open, ("{}", "w"))])
def test_no_code_of_a_checkpoint_runs(tmp_path, function, args):
    trace = tmp_path / "owned"
    args = tuple(a.format(trace) if isinstance(a, str) else "os" for a in args)
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": Command(function, *args), "list": [Command(function, *args)]}, tmp_path / "bad.pth")
    inside = checkpoints.read_checkpoint(tmp_path / "bad.pth")
    assert isinstance(inside["meta"], checkpoints.Stub) and inside["state_dict"]["a"].tolist() == [1, 1] and not trace.exists()
    with pytest.raises(InputError, match="no head of BAFE-Net"): bafenet.load_official(tmp_path / "bad.pth")
    assert not trace.exists()


def test_tensors_keep_views_types_and_sharing(tmp_path):
    base = torch.arange(12.).view(3, 4)
    saved = {"whole": base, "part": base[1:, ::2], "turned": base.T, "none": torch.empty(0, 3), "flag": torch.tensor([True, False]),
             "half": torch.ones(2).bfloat16(), "double": torch.ones(2).double(), "number": torch.tensor(3), "parameter": nn.Parameter(torch.ones(2))}
    torch.save(saved, tmp_path / "t.pth")
    read = checkpoints.read_checkpoint(tmp_path / "t.pth")
    for name, value in saved.items(): assert torch.equal(read[name], value) and read[name].dtype == value.dtype, name


def test_state_is_unwrapped_and_float32(tmp_path):
    torch.save({"state_dict": {"module.a": torch.ones(2).half(), "module.n": torch.tensor(3), "text": "x"}, "optimizer": [1]}, tmp_path / "w.pth")
    state = checkpoints.read_state(tmp_path / "w.pth")
    assert sorted(state) == ["a", "n"] and state["a"].dtype == torch.float32 and state["n"].dtype == torch.int64
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    with pytest.raises(InputError, match="holds no weights"): checkpoints.read_state(tmp_path / "none.pth")

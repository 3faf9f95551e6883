"""Files of torch.save without torch: the tensors it wrote, and nothing that a hostile one asks for."""

from collections import OrderedDict
import io
import pickle
import zipfile

import numpy as np
import pytest

from jaxmoe.model.load import torch_file
from jaxmoe.model.load.tree import LoadError

torch = pytest.importorskip("torch")


def test_what_torch_wrote(tmp_path):
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    state = OrderedDict(
        a=whole, turned=whole.T, part=whole[2:5, 1], half=whole.half(), brain=whole.bfloat16(), ids=torch.arange(5),
        flag=torch.tensor(True), none=torch.zeros(0, 3), learnt=torch.nn.Parameter(whole),
    )  # fmt: skip
    optimizer = torch.optim.AdamW([torch.nn.Parameter(whole)])
    whole = {"model": state, "optimizer": optimizer.state_dict(), "config": {"lr": 1e-3}, "epoch": 3}
    torch.save(whole, tmp_path / "x")
    file = torch_file.load(tmp_path / "x")
    assert file["epoch"] == 3 and file["config"] == {"lr": 1e-3}
    for name, tensor in state.items():
        got = file["model"][name]
        assert str(got.dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(np.asarray(got, np.float64), tensor.detach().double().numpy())


class Call:
    """What pickle makes of it is a call of `function`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def archive(path, value, **members):
    """A file of torch.save with this pickle."""
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x/data.pkl", pickle.dumps(value, 2))
        for name, content in members.items():
            z.writestr(f"x/{name.replace('__', '/')}", content)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "numpy.core.multiarray.scalar"])
def test_no_other_name_is_looked_up(tmp_path, name):
    module, _, function = name.rpartition(".")
    program = f"c{module}\n{function}\n(S'touch {tmp_path}/ran'\ntR.".encode()
    with zipfile.ZipFile(tmp_path / "x", "w") as z:
        z.writestr("x/data.pkl", program)
    with pytest.raises(LoadError, match=rf"asks for {module}\.{function}"):
        torch_file.load(tmp_path / "x")
    assert not (tmp_path / "ran").exists()


def test_a_call_hidden_in_a_reduce_is_refused(tmp_path):
    archive(tmp_path / "x", {"model": Call(io.open, str(tmp_path / "ran"), "w")})
    with pytest.raises(LoadError, match="asks for"):
        torch_file.load(tmp_path / "x")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "shape, stride, offset", [((5,), (1,), 0), ((2, 2), (3, 1), 0), ((2,), (1,), 3), ((2,), (-1,), 1)]
)
def test_a_tensor_cannot_leave_its_storage(tmp_path, shape, stride, offset):
    storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    numbers = lambda x: b"(" + b"".join(f"I{n}\n".encode() for n in x) + b"t"
    program = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + f"I{offset}\n".encode()
    program += numbers(shape) + numbers(stride) + b"I00\nNtR."
    with zipfile.ZipFile(tmp_path / "x", "w") as z:
        z.writestr("x/data.pkl", program)
        z.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())
    with pytest.raises(LoadError, match="leaves its storage"):
        torch_file.load(tmp_path / "x")


def test_damage_is_named(tmp_path):
    torch.save({"model": {"a": torch.ones(100)}}, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match="expected a zip archive"):
        torch_file.load(tmp_path / "cut")
    archive(tmp_path / "empty", {})
    assert torch_file.load(tmp_path / "empty") == {}
    (tmp_path / "old").write_bytes(pickle.dumps({}))
    with pytest.raises(LoadError, match="expected a zip archive"):
        torch_file.load(tmp_path / "old")

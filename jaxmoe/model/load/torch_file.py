"""Files of torch.save (.pth, .pt, .bin) without torch and without executing what they say.

Such a file is a zip archive: data.pkl, a pickle of nested containers, and data/<key>, the raw bytes of each storage.
A pickle is a program: it may name any function and call it. Here it finds five names, all of them in a table below,
and any other ends the loading. Tensors come back as numpy views of the mapped file, so that nothing is read until it
is used.

Source: pytorch/pytorch, torch/serialization.py (_save, _load) and torch/_utils.py (_rebuild_tensor_v2).
"""

from collections import OrderedDict
from collections.abc import Sequence
import io
from pathlib import Path
import pickle
import struct
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from jaxmoe.model.load.tree import LoadError

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
_MAX_PICKLE = 64 << 20  # bytes; that of a 13B model's shard has under a megabyte


def load(path: Path) -> Any:
    """What torch.save wrote: nested dicts and lists whose tensors are read-only numpy arrays on the file.

    Raises:
      LoadError: not such an archive, a pickle that names anything but tensors and containers, or bytes missing.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if "data.pkl" not in members or members["data.pkl"].file_size > _MAX_PICKLE:
                raise LoadError(f"{path}: a zip archive without a data.pkl of under 64 MiB; expected torch.save's.")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise LoadError(f"{path}: big endian; save it again on an ordinary machine.")
            program = archive.read(members["data.pkl"])
    except (zipfile.BadZipFile, OSError) as error:
        raise LoadError(
            f"{path}: {error}; expected a zip archive of torch.save (torch 1.6 or newer). Older files: "
            "torch.save(torch.load(FILE, weights_only=True), FILE)."
        ) from error
    try:
        return _Reader(path, members, program).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"{path}: data.pkl cannot be read: {error!r}; the file is damaged.") from error


class _Reader(pickle.Unpickler):
    """An unpickler whose only names are those of `find_class`."""

    def __init__(self, path: Path, members: dict[str, zipfile.ZipInfo], program: bytes):
        super().__init__(io.BytesIO(program), encoding="utf-8")
        self.path, self.members = path, members
        self.bytes = np.memmap(path, np.uint8, "r")

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in known:
            raise LoadError(
                f"{self.path}: its pickle asks for {module}.{name}; expected tensors, dicts, lists, numbers and text. "
                "It is not loaded, since a pickle may run any code. If you trust it: keep the weights alone with torch."
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: ("storage", type, key, device, elements) -> its elements on the file."""
        kind, dtype, key, _, count = pid
        info = self.members.get(f"data/{key}")
        size = int(count) * np.dtype(dtype).itemsize
        if kind != "storage" or info is None or info.file_size != size or info.compress_type != zipfile.ZIP_STORED:
            raise LoadError(f"{self.path}: storage {key!r} of {size} bytes is not in the archive as torch writes it.")
        # The local header repeats the name and has an extra field of its own length: 64-byte alignment.
        header = self.bytes[info.header_offset : info.header_offset + 30].tobytes()
        name, extra = struct.unpack("<HH", header[26:30])
        at = info.header_offset + 30 + name + extra
        if at + size > len(self.bytes):
            raise LoadError(f"{self.path}: storage {key!r} ends after the file; copy it again.")
        return self.bytes[at : at + size].view(dtype)


def _rebuild_tensor(
    storage: np.ndarray, offset: int, shape: Sequence[int], stride: Sequence[int], *_: Any
) -> np.ndarray:
    """A tensor's view of its storage, inside of it."""
    span = sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1 if all(shape) else 0
    if min((offset, *shape, *stride)) < 0 or offset + span > len(storage):
        raise ValueError(f"a tensor {list(shape)} with strides {list(stride)} leaves its storage of {len(storage)}")
    bytes_ = tuple(s * storage.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], tuple(shape), bytes_, writeable=False)

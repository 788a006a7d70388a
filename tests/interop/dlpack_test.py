"""include/heed/dlpack.h against NumPy and PyTorch: their tensors as views and views as their tensors."""

import ctypes
import os
import pathlib
import subprocess

import numpy as np
import pytest

try:
    import torch
except ImportError:  # NumPy alone is a test too
    torch = None

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIM = """
#include "heed/dlpack.h"
int view_of(const void* t, heed_view* v, char* m, size_t n) { return (int)heed_view_from_dlpack(t, v, m, n); }
static int released;
static void release(void* owner) { (void)owner; ++released; }
int times_released(void) { return released; }
void* tensor_of(const heed_view* v) {
  heed_dl_managed* out;
  return heed_view_to_dlpack(v, release, 0, &out, 0, 0) == HEED_OK ? out : 0;
}
"""


class View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("device", ctypes.c_int32), ("rank", ctypes.c_int32),
                ("sizes", ctypes.c_int64 * 5), ("strides", ctypes.c_int64 * 5)]


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dlpack")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-shared", "-fPIC",
                    f"-I{ROOT}/include", "-o", folder / "shim.so", folder / "shim.c"], check=True)
    library = ctypes.CDLL(str(folder / "shim.so"))
    library.tensor_of.restype = ctypes.c_void_p
    return library


def view_of(shim, tensor):
    capsule = tensor.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    view, message = View(), ctypes.create_string_buffer(200)
    status = shim.view_of(ctypes.c_void_p(pointer(capsule, b"dltensor")), ctypes.byref(view), message, 200)
    return status, view, message.value.decode()


TYPES = [("float32", 0), ("float16", 2), ("float64", 3), ("int64", 4), ("int32", 5), ("uint8", 6)]


@pytest.mark.parametrize("name,dtype", TYPES)
def test_numpy_in(shim, name, dtype):
    array = np.arange(24).astype(name).reshape(2, 3, 4).transpose(0, 2, 1)[:, 1:]
    status, view, message = view_of(shim, array)
    assert status == 0, message
    assert (view.dtype, view.device, view.rank) == (dtype, 0, 3)
    assert tuple(view.sizes[:3]) == array.shape
    assert tuple(view.strides[:3]) == tuple(s // array.itemsize for s in array.strides)
    assert view.data == array.ctypes.data


@pytest.mark.parametrize("array,said", [(np.zeros((1,) * 6, np.float32), "rank 6"), (np.zeros(2, np.complex64), "dtype"),
                                        (np.zeros(2, np.int16), "dtype")])
def test_numpy_refused(shim, array, said):
    status, _, message = view_of(shim, array)
    assert status != 0 and said in message


class Exported:
    """A capsule as a library hands it out."""

    def __init__(self, pointer):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.capsule = new(pointer, b"dltensor", None)

    def __dlpack__(self, **_):
        return self.capsule

    def __dlpack_device__(self):
        return 1, 0


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_out_and_released_once(shim, library):
    if library == "torch" and torch is None:
        pytest.skip("PyTorch is not installed")
    data = np.arange(24, dtype=np.float32)
    view = View(data.ctypes.data, 0, 0, 3, (ctypes.c_int64 * 5)(2, 3, 4), (ctypes.c_int64 * 5)(12, 1, 3))
    before = shim.times_released()
    tensor = (np if library == "numpy" else torch).from_dlpack(Exported(shim.tensor_of(ctypes.byref(view))))
    expected = np.lib.stride_tricks.as_strided(data, (2, 3, 4), (48, 4, 12))
    assert np.array_equal(np.asarray(tensor), expected)
    assert shim.times_released() == before
    del tensor
    assert shim.times_released() == before + 1


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
def test_torch_in(shim):
    tensor = torch.arange(24, dtype=torch.bfloat16).view(2, 3, 4).mT
    status, view, message = view_of(shim, tensor)
    assert status == 0, message
    assert (view.dtype, view.device, view.rank) == (1, 0, 3)
    assert tuple(view.strides[:3]) == tensor.stride()
    assert view.data == tensor.data_ptr()

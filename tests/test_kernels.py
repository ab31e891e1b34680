import ctypes
import ctypes.util
import importlib.util
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from npref import kernels, to_host
from npref.kernels import launch


def numbers(xp, n):
    return xp.asarray(np.arange(1.0, n + 1))


def test_every_thread_does_its_share_of_every_item(device):
    """Whether there are fewer threads than numbers, more, or none; items differ in size, and one may be empty."""
    for threads in 1, 3, 256, 1000:
        arrays = [numbers(device, n) for n in (5, 0, 700, 1)]
        launch(device, "sgd", [(a, numbers(device, a.size), np.uint64(a.size)) for a in arrays], [np.float64(0.5)], threads)
        for a in arrays:
            assert np.array_equal(to_host(a), np.arange(1, a.size + 1) / 2)
    launch(device, "sgd", [(arrays[0], arrays[0], np.uint64(5))], [np.float64(0.5)], 0)
    launch(device, "sgd", [], [np.float64(0.5)])
    assert np.array_equal(to_host(arrays[0]), np.arange(1, 6) / 2)


def test_items_keep_to_their_own_dtype(device):
    arrays = [numbers(device, 4).astype(dtype) for dtype in ("float32", "float64", "float32")]
    launch(device, "sgd", [(a, a.copy(), np.uint64(4)) for a in arrays], [np.float64(1.0)])
    assert all(to_host(a).tolist() == [0] * 4 for a in arrays)
    third = [(device.zeros(1, dtype=dtype), device.asarray(np.ones(1, dtype=dtype)), np.uint64(1)) for dtype in ("float32", "float64")]
    launch(device, "sgd", third, [np.float64(1 / 3)])
    assert [to_host(p)[0] for p, _, _ in third] == [-np.float32(1 / 3), -1 / 3]


@pytest.mark.parametrize("n, shared", [(10, 1), (11, 1), (10, 3), (9, 2)])
def test_no_kernel_gets_more_arguments_than_it_takes(fake_cupy, monkeypatch, n, shared):
    """Those that all items share count, too. (The stand-in refuses more than 4 KiB.)"""
    seen = []
    monkeypatch.setattr(kernels, "ARGUMENTS", n)
    monkeypatch.setattr(kernels, "_kernel", lambda xp, function, *more: lambda grid, block, arguments: seen.append(arguments))
    items = [(np.uint64(i), np.uint64(i)) for i in range(9)]
    launch(fake_cupy, "anything", items, [np.uint64(99)] * shared)
    assert [a for arguments in seen for a in arguments[: len(arguments) - shared]] == [a for item in items for a in item]
    assert all(arguments[-shared:] == (99,) * shared for arguments in seen)
    assert len(seen[0]) + 2 > n >= max(map(len, seen))


@pytest.mark.parametrize("n", [1, 169, 170, 171, 340, 400])
def test_many_items_take_several_kernels(device, n):
    assert kernels.ARGUMENTS == 512, "of 8 bytes, 4 KiB"
    arrays = [device.asarray(np.ones(2)) for _ in range(n)]
    launch(device, "sgd", [(a, device.asarray(np.full(2, float(i))), np.uint64(2)) for i, a in enumerate(arrays)], [np.float64(1.0)])
    assert [to_host(a).tolist() for a in arrays] == [[1 - i] * 2 for i in range(n)]


def test_a_kernel_is_compiled_once(fake_cupy):
    kernel = kernels._kernel(fake_cupy, "sums", 3, 1, "d", "d", np.uint64, np.uint64)
    assert kernel is kernels._kernel(fake_cupy, "sums", 3, 1, "d", "d", np.uint64, np.uint64)


@pytest.fixture(scope="module")
def nvrtc():
    """NVIDIA's own compiler, with which CuPy compiles kernels. It needs no GPU: the package nvidia-cuda-nvrtc-cu12 is enough."""
    spec = importlib.util.find_spec("nvidia")
    found = [path for root in (spec.submodule_search_locations if spec else []) for path in Path(root).glob("*/lib/libnvrtc.so.*")]
    name = found[0] if found else ctypes.util.find_library("nvrtc")
    if name is None:
        pytest.skip("needs NVRTC, such as of the package nvidia-cuda-nvrtc-cu12")
    return ctypes.CDLL(str(name))


def compile_with(nvrtc, text):
    """What the compiler says of a kernel's text: nothing, if all is well."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None) == 0
    option = ctypes.c_char_p(b"--gpu-architecture=compute_75")
    failed = nvrtc.nvrtcCompileProgram(program, 1, ctypes.byref(option))
    assert nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetProgramLog(program, log) == 0
    assert nvrtc.nvrtcDestroyProgram(ctypes.byref(program)) == 0
    return log.value.decode() or "failed" * bool(failed)


SIGNATURE = re.compile(r"^(?:template <(.*?)>\s+)?__device__ (?:__noinline__ )?void (\w+)\(u64 i, u64 threads, ([^)]*)\)", re.M)


@pytest.mark.parametrize("function", [name for _, name, _ in SIGNATURE.findall(kernels.CUDA)])
def test_nvidias_compiler_takes_every_kernel_without_a_warning(nvrtc, function):
    """For float32 and float64, also mixed, and for several layers in one kernel."""
    [(template, parameters)] = [(t, p) for t, name, p in SIGNATURE.findall(kernels.CUDA) if name == function]
    typenames, texts = re.findall(r"typename (\w+)", template), []
    for letters in itertools.product("fd", repeat=len(typenames)):
        known = {"u64": np.uint64, "double": np.float64, "double*": "d", "bool*": "?"}
        known |= {f"{typename}*": letter for typename, letter in zip(typenames, letters)}
        types = [known[p.replace("const", "").split()[0]] for p in parameters.split(",")]
        kernels._kernel.__wrapped__(SimpleNamespace(RawKernel=lambda text, name: texts.append(text)), function, len(types), 0, *types * 2)
    assert len(texts) == 2 ** len(typenames)
    assert [compile_with(nvrtc, text) for text in texts] == [""] * len(texts)

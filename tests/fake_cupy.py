"""A stand-in for CuPy on machines without a GPU: NumPy inside, CuPy's refusals outside.

Like CuPy, its arrays are never converted to NumPy arrays implicitly, never mix with them, and reductions give 0-d arrays. Unlike
CuPy it counts what leaves the device and how often kernels of our own are launched, in `counts`, and it has only the functions listed
here, all of which CuPy has. RawKernel compiles the CUDA text with the machine's C++ compiler and runs every thread in turn. A fused
function gets arrays and numbers that refuse what CuPy's tracing cannot see or gets wrong.
"""

import collections
import ctypes
import operator
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

__version__ = "fake"
COMPILER = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
counts = collections.Counter()
copies = []  # to the host, which come there when an event is waited for
fusing = False

FUNCTIONS = ("empty zeros eye zeros_like ones_like maximum tanh where exp sqrt sum arange concatenate stack isfinite "
             "multiply divide subtract arctan2 add matmul real").split()
FUSED = set(FUNCTIONS) - {*"empty zeros eye zeros_like ones_like arange concatenate stack matmul".split()}
float32, float64 = np.float32, np.float64
result_type = np.result_type


class ndarray:
    __array_ufunc__ = None  # NumPy hands every operation back, to be refused below
    __hash__ = None

    def __init__(self, data):
        self._data = data

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def get(self, out=None, blocking=True):
        counts["to_host"] += 1
        if out is None:
            return self._data.copy()
        copies.append((out, self._data.copy()))
        if blocking:
            event = _Event()
            event.record()
            event.synchronize()
        return out

    def _scalar(convert):
        def method(self):
            counts["to_host"] += 1
            return convert(self._data)
        return method

    __bool__, __int__, __float__, __index__, item = map(_scalar, (bool, int, float, operator.index, np.ndarray.item))

    def __len__(self):
        return len(self._data)

    def __iter__(self):
        return (ndarray(row) for row in self._data)

    def __getitem__(self, key):
        return _wrap(self._data[_unwrap(_by_place(key))])

    def __setitem__(self, key, value):
        if isinstance(value, (tuple, list)):
            raise ValueError(f"expected an array or a number, got {value}")
        self._data[_unwrap(_by_place(key))] = _unwrap(value)

    def __repr__(self):
        return f"fake_cupy.{self._data!r}"

    T = property(lambda self: ndarray(self._data.T))
    real = property(lambda self: ndarray(self._data.real))


    @property
    def flags(self):  # without writeable, which CuPy's lack
        return SimpleNamespace(**{name: getattr(self._data.flags, name) for name in ("c_contiguous", "f_contiguous", "owndata")})


for _name in "shape ndim dtype size nbytes strides".split():
    setattr(ndarray, _name, property(lambda self, _name=_name: getattr(self._data, _name)))
for _name in "reshape astype sum max argmax all any transpose view ravel copy diagonal".split():
    setattr(ndarray, _name, lambda self, *a, _name=_name, **k: _wrap(getattr(self._data, _name)(*_unwrap(a), **_unwrap(k))))
for _name in "add sub mul truediv pow matmul lt le gt ge eq ne".split():
    def _forward(self, other, _f=getattr(operator, _name)):
        return _wrap(_f(self._data, _unwrap(other)))

    def _reflected(self, other, _f=getattr(operator, _name)):
        return _wrap(_f(_unwrap(other), self._data))

    def _in_place(self, other, _f=getattr(operator, "i" + _name, None)):
        _f(self._data, _unwrap(other))
        return self

    setattr(ndarray, f"__{_name}__", _forward)
    if _name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__r{_name}__", _reflected)
        setattr(ndarray, f"__i{_name}__", _in_place)
ndarray.__neg__ = lambda self: _wrap(-self._data)
ndarray.__abs__ = lambda self: _wrap(abs(self._data))
ndarray.__module__, ndarray.__qualname__ = "cupy", "ndarray"


def _by_place(key):
    """The key; a mask waits for the device, to tell how many there are."""
    counts["to_host"] += any(isinstance(k, ndarray) and k.dtype == bool for k in (key if isinstance(key, tuple) else (key,)))
    return key


def _unwrap(x):
    if isinstance(x, ndarray):
        return x._data
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, _Number):
        return float.__float__(x)
    if isinstance(x, (tuple, list)):
        return type(x)(_unwrap(i) for i in x)
    if isinstance(x, dict):
        return {k: _unwrap(v) for k, v in x.items()}
    return x


def _wrap(x):
    return (_Traced if fusing else ndarray)(np.asarray(x)) if isinstance(x, (np.ndarray, np.generic)) else x


class _Traced(ndarray):
    """An array inside a fused function: it has a dtype, elementwise operations, `[...] =` and one sum over an axis."""

    __module__, __qualname__ = "cupy._core.fusion", "_FusionVarArray"

    def __setitem__(self, key, value):
        if key is not Ellipsis:
            raise ValueError("The fusion supports `[...]` or `[:]`.")
        super().__setitem__(key, value)


def _refused(name):
    def method(self, *args):
        raise AttributeError(f"no {name} in a fused function")
    return method


for _name in "shape size flags nbytes strides T real".split():
    setattr(_Traced, _name, property(_refused(_name)))
for _name in "reshape sum max argmax all any transpose view ravel diagonal get item __getitem__ __len__ __iter__ __matmul__".split():
    setattr(_Traced, _name, _refused(_name))


class _Number(float):
    """A number inside a fused function: CuPy computes what happens to it, or between two of them, in half precision, or not at all."""

    __hash__ = None


for _name in "add sub mul truediv pow mod floordiv lt le gt ge eq ne neg pos abs bool int float round trunc floor ceil".split():
    def _alone(self, *other, _name=_name):
        if other and isinstance(other[0], ndarray):
            return NotImplemented
        raise TypeError("arithmetic with numbers alone in a fused function")
    setattr(_Number, f"__{_name}__", _alone)
    if hasattr(float, f"__r{_name}__"):
        setattr(_Number, f"__r{_name}__", _alone)


def fuse(kernel_name=None):
    """One kernel for a function of arrays, Python's numbers and None."""
    def decorate(function):
        def call(*args):
            global fusing
            if not all(a is None or type(a) in (ndarray, float, int) for a in args):
                raise TypeError(f"Invalid argument type: {[type(a) for a in args]}")
            fusing = True
            try:
                result = function(*(_Traced(a._data) if isinstance(a, ndarray) else a if a is None else _Number(a) for a in args))
            finally:
                fusing = False
            return ndarray(result._data) if isinstance(result, ndarray) else result
        return call
    return decorate


def __getattr__(name):
    if name not in FUNCTIONS:
        raise AttributeError(f"the stand-in for CuPy has no {name}: add it if CuPy has it")

    def function(*args, **kwargs):
        if fusing and not kwargs.keys() <= {"out", "axis"}:
            raise TypeError(f"Wrong arguments {kwargs}")
        if fusing and (name not in FUSED or not any(isinstance(a, ndarray) for a in args)):
            raise TypeError(f"no {name} of {args} in a fused function")
        result = getattr(np, name)(*_unwrap(args), **_unwrap(kwargs))
        return kwargs["out"] if kwargs.get("out") is not None else _wrap(result)

    return function


def asarray(x, dtype=None):
    """The one way in: NumPy arrays and lists are copied to the "device"."""
    counts["to_device"] += not isinstance(x, ndarray)
    return ndarray(np.array(x._data if isinstance(x, ndarray) else x, dtype=dtype))


class RawKernel:
    """The kernel's own text, compiled for the CPU: arguments are arrays, and numbers of uint64 or float64."""

    SHIM = """
    struct dim { unsigned x; };
    static dim blockIdx, blockDim, threadIdx, gridDim;
    static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
    #define __global__
    #define __device__
    #define __noinline__
    #include <math.h>
    %s
    extern "C" void launch(unsigned grid, unsigned block, %s) {
        gridDim.x = grid;
        blockDim.x = block;
        for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
                %s(%s);
    }
    """
    TYPES = {"uint64": "u64", "float32": "float", "float64": "double", "bool": "bool"}  # u64 as kernels.py has it

    def __init__(self, text, name):
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            start = text.index(f"void {name}(") + len(f"void {name}(")
            parameters = text[start : text.index(")", start)]
            self.types, names = zip(*(p.split() for p in parameters.split(", ")))
            source.write_text(self.SHIM % (text, parameters, name, ", ".join(names)))
            # -ffp-contract: or a * b + c is rounded once where the processor can, and NumPy's numbers are not met to the last bit
            subprocess.run([COMPILER, "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-o", library, source], check=True)
            self.launch = ctypes.CDLL(str(library)).launch

    def __call__(self, grid, block, arguments):
        counts["kernels"] += 1
        assert min(*grid, *block) > 0, "an invalid launch"
        assert 8 * len(arguments) <= 4096, "more arguments than older CUDA takes"
        given = [f"{self.TYPES[a.dtype.name]}{'*' * isinstance(a, ndarray)}" for a in arguments]
        assert given == [*self.types], "a kernel's arguments must have their exact types"
        assert all(a._data.flags.c_contiguous for a in arguments if isinstance(a, ndarray))
        self.launch(ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), *(
            a._data.ctypes.data_as(ctypes.c_void_p) if isinstance(a, ndarray) else
            ctypes.c_ulonglong(a) if a.dtype == "uint64" else ctypes.c_double(a) for a in arguments))


def numpys(function):
    """The function with NumPy's results, moved to this device, which computes its own all the same: what that transfers is counted."""
    def on_host(a):
        if isinstance(a, (list, tuple)):
            return [on_host(b) for b in a]
        return np if a is sys.modules[__name__] else a._data if isinstance(a, ndarray) else a

    def call(*args, **kwargs):
        found, results = function(*args, **kwargs), function(*on_host(args), **kwargs)
        return ndarray(results) if isinstance(found, ndarray) else [*map(ndarray, results)] if isinstance(found[0], ndarray) else found

    return call


class _Event:
    def __init__(self):
        self.copies = []  # waiting for an event that was not recorded is waiting for nothing

    def record(self):
        self.copies = list(copies)

    def synchronize(self):
        for out, data in self.copies:
            out[...] = data
            copies[:] = [copy for copy in copies if copy[0] is not out]


def _synchronize():
    counts["synchronize"] += 1
    event = _Event()
    event.record()
    event.synchronize()


class _Device:
    id = 0
    mem_info = (0, 64 << 30)


lib = SimpleNamespace(stride_tricks=SimpleNamespace(
    as_strided=lambda x, shape, strides: ndarray(np.lib.stride_tricks.as_strided(_unwrap(x), shape, strides))))
allocators = [None]


class _MemoryPool:
    held = 0

    def malloc(self, size):
        self.held += size

    def total_bytes(self):
        return self.held


@contextmanager
def _using_allocator(allocator):
    allocators.append(allocator)
    try:
        yield
    finally:
        allocators.pop()


cuda = SimpleNamespace(
    Device=_Device,
    Event=_Event,
    MemoryPool=_MemoryPool,
    using_allocator=_using_allocator,
    alloc_pinned_memory=lambda size: bytearray(b"\xff" * size),  # not a number, as float64
    runtime=SimpleNamespace(getDeviceCount=lambda: 1, getDeviceProperties=lambda i: {"name": b"stand-in device"}),
    get_current_stream=lambda: SimpleNamespace(synchronize=_synchronize),
)
sys.modules.setdefault("fake_cupy", sys.modules[__name__])

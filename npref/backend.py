"""NumPy or CuPy. The only file of npref that names CuPy.

Functions elsewhere take the array module from their arguments, once, at the top (`xp = array_module(x, W)`), and are
then one text for both. Arrays enter a device by `backend.xp.asarray` and leave it by `to_host` or `to_host_later`, nowhere else.
"""

import os
import platform
import sys
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

# OpenBLAS reads this as NumPy loads it: how long, as a power of two of clock ticks, its threads spin for the next product. By default
# (26) that is tens of milliseconds, on cores that are wanted for elementwise work by then. It has no effect where NumPy was imported
# before npref.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

import numpy as np

BACKENDS = ("numpy", "cupy")
# delta L is a small difference of two losses; TF32's 10-bit mantissa buries it at sigma = 1e-3.
REDUCED_PRECISION = ("CuPy multiplies float32 matrices in reduced precision (TF32), which buries the loss differences: "
                     "unset CUPY_TF32 and start again")
NO_DEVICE = "CuPy is installed, but there is no CUDA device: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --backend numpy"


class BackendUnavailable(RuntimeError):
    """The asked-for backend cannot work on this machine; the message says why and what to install."""


@dataclass(frozen=True)
class Backend:
    """`name` ("numpy" or "cupy"), the array module `xp`, and `device`, the hardware in words."""

    name: str
    xp: ModuleType
    device: str


def get_backend(name: str = "numpy") -> Backend:
    """The backend called `name`.

    Raises ValueError for an unknown name, and BackendUnavailable when CuPy is not installed, finds no driver or no
    device, misses a CUDA library, or multiplies float32 matrices in reduced precision. Never falls back to NumPy.
    """
    if name == "numpy":
        return Backend("numpy", np, f"{_cpu_name()}, {os.cpu_count()} cores")
    if name == "cupy":
        return _probe_cupy()
    raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")


def array_module(*arrays) -> ModuleType:
    """NumPy or CuPy, whichever the given arrays belong to (None is skipped).

    Raises TypeError when they are mixed, or when one is neither, or is masked or a matrix, which compute otherwise.
    """
    return _module_of(frozenset(map(type, arrays)))


@lru_cache
def _module_of(types):
    types -= {type(None)}
    for t in types - {np.ndarray}:
        if issubclass(t, (np.ma.MaskedArray, np.matrix)):
            raise TypeError(f"expected a plain array, got numpy.{t.__name__}: use its filled(value), or numpy.asarray")
    kinds = {t.__module__.partition(".")[0]: t for t in types}
    if kinds.keys() == {"numpy"} and all(issubclass(t, (np.ndarray, np.generic)) for t in types):
        return np
    if kinds.keys() == {"cupy"}:
        return sys.modules["cupy"]
    if kinds.keys() == {"numpy", "cupy"}:
        raise TypeError("NumPy and CuPy arrays are mixed: expected all numpy.ndarray or all cupy.ndarray; "
                        "move them with backend.xp.asarray(x) or npref.to_host(x)")
    names = ", ".join(sorted(f"{t.__module__}.{t.__qualname__}" for t in kinds.values())) or "no array"
    remedy = "; numpy.asarray turns lists into arrays" if types & {list, tuple} else ""
    raise TypeError(f"expected numpy.ndarray or cupy.ndarray arguments, got {names}{remedy}")


def to_host(x) -> np.ndarray:
    """x as a NumPy array, once the device has done all that was asked of it."""
    return x if array_module(x) is np else x.get()


def to_host_later(x):
    """Start to copy x to the host. Returns a function without arguments that waits for this copy and gives it, a NumPy array.

    `to_host`, called later, would also wait for all that has been asked of the device since then. A NumPy array is given as it is.
    """
    xp = array_module(x)
    if xp is np:
        return lambda: x
    on_host = np.frombuffer(xp.cuda.alloc_pinned_memory(x.nbytes), dtype=x.dtype, count=x.size).reshape(x.shape)
    x.get(out=on_host, blocking=False)
    copied = xp.cuda.Event()
    copied.record()

    def wait():
        copied.synchronize()
        return on_host

    return wait


def synchronize(xp: ModuleType) -> None:
    """Wait until the device has done all that was asked of it (nothing to do on NumPy)."""
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()


def _probe_cupy() -> Backend:
    """Import CuPy and see it work: `import cupy` alone succeeds on machines without a driver."""
    try:
        import cupy
    except Exception as error:  # whatever a broken installation raises
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise BackendUnavailable("CuPy is not installed: pip install cupy-cuda12x (CUDA 12) or cupy-cuda13x (CUDA 13), "
                                     "or use --backend numpy") from error
        raise BackendUnavailable(f"CuPy is installed, but cannot be imported, a library it needs is missing ({_first_line(error)}): "
                                 "install the wheel for your CUDA version, cupy-cuda12x or cupy-cuda13x") from error
    if os.environ.get("CUPY_TF32", "0") not in ("", "0"):
        raise BackendUnavailable(REDUCED_PRECISION)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        if "cudaErrorNoDevice" in str(error):
            raise BackendUnavailable(NO_DEVICE) from error
        raise BackendUnavailable(f"CuPy is installed, but there is no working NVIDIA driver ({_first_line(error)}): "
                                 "install or update the driver, or use --backend numpy") from error
    if count == 0:
        raise BackendUnavailable(NO_DEVICE)
    try:
        # One elementwise kernel (needs the NVRTC compiler) and one matrix product (needs cuBLAS). 1 + 2^-12 is exact in
        # float32 and rounds to 1 in TF32, bfloat16 and float16, so the product also tells the precision.
        ones = cupy.zeros((512, 512), dtype=cupy.float32) + cupy.float32(1 + 2**-12)
        product = (ones @ cupy.eye(512, dtype=cupy.float32)).get()
        device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    except Exception as error:  # CuPy's own kinds among them
        if "out of memory" in str(error).lower():
            raise BackendUnavailable(f"the GPU has no memory left ({_first_line(error)}): end what else runs on it (nvidia-smi lists it), "
                                     "or use --backend numpy") from error
        raise BackendUnavailable(f"CuPy finds a device but cannot compute on it, a CUDA library (NVRTC, cuBLAS) is missing "
                                 f"or does not fit ({_first_line(error)}): pip install \"cupy-cuda12x[ctk]\"") from error
    if not (product == np.float32(1 + 2**-12)).all():
        raise BackendUnavailable(REDUCED_PRECISION)
    return Backend("cupy", cupy, device.decode() if isinstance(device, bytes) else str(device))


def _first_line(error: BaseException) -> str:
    text = str(error).rpartition("Original error:")[2]  # CuPy's import error is a page with the cause at its end
    lines = [line.strip(" =") for line in text.splitlines() if line.strip(" =")]
    return lines[0] if lines else type(error).__name__


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

"""How work on arrays is carried out: on a CPU in blocks that stay in the cache, on all cores; on a GPU in few kernels."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import lru_cache, partial
from threading import Barrier
from types import ModuleType

import numpy as np

from .backend import array_module
from .kernels import launch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
# How many elements an elementwise loop on a CPU takes at a time: a megabyte of float32, a core's share of the cache. Between two operations
# a thread waits for Python's lock; each must last long enough to make up for that.
CACHE_BLOCK = 1 << 18


@lru_cache
def samples_budget(xp: ModuleType) -> int:
    """How many bytes the noise samples that are held at a time should take (`rules.group_size`): 128 MiB; on a GPU 2 GiB, but no more than
    an eighth of its memory, as it is as fast for large arrays, and every group of noise samples has its launches.
    """
    return 128 << 20 if xp is np else min(2 << 30, xp.cuda.Device().mem_info[1] // 8)


def cores() -> int:
    """How many threads share elementwise work on the CPU: what OPENBLAS_, MKL_ or OMP_NUM_THREADS says, else every core."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdecimal() and int(os.environ[name]) > 0:
            return int(os.environ[name])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_blocks(xp: ModuleType, function, n: int, width: int = 1) -> None:
    """function(blocks), where blocks is a list of consecutive slices; all lists together cover range(n), whose items have `width` numbers.

    On a CPU a slice stays in the cache for all that is done to it, and the slices are shared out among the cores, as far as there are
    enough: functions write to their own only (NumPy computes without Python's lock). On a GPU there is one slice. No result depends
    on the division. An error on any thread is raised once all have ended.
    """
    size = max(1, CACHE_BLOCK // max(1, width))
    if xp is not np or n <= size:
        if n:
            function([slice(0, n)])
        return
    blocks = [slice(i, min(i + size, n)) for i in range(0, n, size)]
    workers = min(cores(), len(blocks))
    pool = _threads(cores() - 1) if workers > 1 else None
    if pool is None:
        function(blocks)
        return
    parts = [blocks[w * len(blocks) // workers : (w + 1) * len(blocks) // workers] for w in range(workers)]
    others = []
    try:
        for part in parts[1:]:
            try:
                others.append(pool.submit(copy_context().run, function, part))  # the context has np.errstate
            except RuntimeError:  # the interpreter is shutting down
                function(part)
        function(parts[0])
    finally:
        wait(others)
    for other in others:
        other.result()


def elementwise(xp: ModuleType, function, arrays, numbers=(), constants=()) -> None:
    """function(*constants, *arrays, *numbers), which writes to arrays element by element: on a CPU by `in_blocks`, on a GPU `fused`.

    A block is a range of the last axis but one, which all arrays share; any but the first may be None.
    """
    function = fused(xp, function, *constants)
    if xp is not np:
        function(*arrays, *numbers)
        return

    def apply(blocks):
        for b in blocks:
            function(*(None if a is None else a[..., b, :] for a in arrays), *numbers)

    n = arrays[0].shape[-2]
    in_blocks(xp, apply, n, arrays[0].size // max(n, 1))


@lru_cache
def fused(xp: ModuleType, function, *constants):
    """function(*constants, ...) as a function of arrays and numbers: on a GPU one elementwise kernel, compiled for these constants.

    A launch takes Python longer than a GPU needs for most arrays here. CuPy traces the function once for each combination of dtypes,
    dimensions and None: it may write to x[...], in place or with `out`, and end in one sum. Numbers must be Python's and meet arrays
    only: between two numbers CuPy computes in half precision. (CuPy 13 with NumPy 2 computes in float64 where an array meets one.)
    """
    bound = partial(function, *constants) if constants else function
    return bound if xp is np else xp.fuse(kernel_name=function.__name__)(bound)


def weighted_sums(xp: ModuleType, weights, arrays, totals=None):
    """Of each layer Σ_k weights[k, b] a[k, b, :], added in place to `totals` if they are given: lists of (k, B), (k, B, n) -> (B, n)."""
    sums = [xp.empty(a.shape[1:], dtype=a.dtype) for a in arrays] if totals is None else totals
    if xp is not np:
        launch(xp, "weighted_sum", [(out, w.ravel(), a.ravel(), *map(np.uint64, a.shape)) for out, w, a in zip(sums, weights, arrays)],
               [np.uint64(totals is not None)])
        return sums
    for out, w, a in zip(sums, weights, arrays):
        in_blocks(xp, partial(_weighted_sum, w, a, out, totals is not None), a.shape[1], a.size // max(a.shape[1], 1))
    return sums


def _weighted_sum(weights, a, out, added, blocks):
    for b in blocks:
        summed = np.einsum("kb,kbn->bn", weights[:, b], a[:, b])
        out[b] = out[b] + summed if added else summed


def squares(xp: ModuleType, arrays):
    """Of each layer ‖a[k, b]‖²: a list of (k, B, n) -> a list of (k, B)."""
    outs = [xp.empty(a.shape[:2], dtype=a.dtype) for a in arrays]
    if xp is not np:
        parts = 32  # of a row, a thread each: so neighbouring threads read neighbouring numbers
        sums = [xp.empty((out.size, parts), dtype=out.dtype) for out in outs]
        launch(xp, "sums_of_squares", [(s, a.ravel(), np.uint64(out.size), np.uint64(a.shape[2])) for s, a, out in zip(sums, arrays, outs)],
               [np.uint64(parts)])
        launch(xp, "sums", [(out, s, np.uint64(out.size)) for s, out in zip(sums, outs)], [np.uint64(parts)])
        return outs
    for out, a in zip(outs, arrays):
        in_blocks(xp, partial(_squares, a, out), a.shape[1], a.size // max(a.shape[1], 1))
    return outs


def _squares(a, out, blocks):
    for b in blocks:
        out[:, b] = np.einsum("kbn,kbn->kb", a[:, b], a[:, b])


def column_squares(xp: ModuleType, x):
    """Σ_m x[m, i]²: (M, n) -> (n,)."""
    if xp is np:
        return np.einsum("mi,mi->i", x, x)
    return fused(xp, _column_squares)(x)


def _column_squares(x):
    return array_module(x).sum(x * x, axis=0)


def mark_nonfinite(xp: ModuleType, arrays, marks) -> None:
    """marks[i], of float64 and 0 before, becomes a number that is not finite if arrays[i] has such a number.

    A sum tells it on a CPU, where it may also be that the sum alone has overflowed. A GPU looks at all in one kernel.
    """
    if xp is np:
        for i, a in enumerate(arrays):
            marks[i] = a.sum()
        return
    launch(xp, "mark_nonfinite", [(a.ravel(), np.uint64(a.size), np.uint64(i)) for i, a in enumerate(arrays)], [marks])


def keep_freed_memory() -> None:
    """Let this process keep what its arrays free, to be used again, up to a gigabyte; for arrays below 32 MB, and with glibc.

    A training step allocates the same arrays each time. Handed back to the system they come again as zeroed pages, at up to a
    tenth of the step's time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    for option, size in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30)):
        mallopt(option, size)


@lru_cache
def _threads(count):
    """A pool of so many threads, or half as many (and so on) where the system gives no more; None where it gives none.

    All are started here: `submit` queues before it starts a thread, so work for which it could start none would still run later.
    """
    pool, started = ThreadPoolExecutor(count, thread_name_prefix="npref"), Barrier(count + 1)
    try:
        for _ in range(count):
            pool.submit(started.wait)
        started.wait()
    except BaseException as error:
        started.abort()  # or those that have been started would wait without end
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, RuntimeError):
            return _threads(count // 2) if count > 1 else None
        raise
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked process has none of its parent's threads

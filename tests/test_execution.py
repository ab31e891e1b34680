import os
import platform
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from npref import execution, to_host
from npref.execution import column_squares, elementwise, fused, mark_nonfinite, squares, weighted_sums


@pytest.mark.parametrize("cores", [1, 2, 3, 7])
@pytest.mark.parametrize("n, width, size", [(10, 8, 5), (10, 40, 1), (10, 41, 1), (10, 1, 10), (0, 3, 1), (4, 0, 4), (11, 10, 4)])
def test_blocks_cover_every_item_once(cores, n, width, size, monkeypatch):
    """Consecutive slices of as many items as 40 numbers hold, shared out evenly."""
    monkeypatch.setattr(execution, "CACHE_BLOCK", 40)
    monkeypatch.setattr(execution, "cores", lambda: cores)
    lists = []
    execution.in_blocks(np, lists.append, n, width)
    lists.sort(key=lambda blocks: blocks[0].start)
    blocks = [b for part in lists for b in part]
    assert blocks == [slice(i, min(i + size, n)) for i in range(0, n, size)]
    assert len(lists) == min(cores, len(blocks))
    assert n == 0 or max(map(len, lists)) - min(map(len, lists)) <= 1


def test_blocks_run_on_several_threads_with_the_callers_error_handling(monkeypatch):
    """And an error on any of them is the caller's, once all have ended."""
    monkeypatch.setattr(execution, "CACHE_BLOCK", 1)
    monkeypatch.setattr(execution, "cores", lambda: 2)
    meet, seen, x = threading.Barrier(2, timeout=60), [], np.array([1.0, 2.0])

    def function(blocks):
        meet.wait()
        seen.append((threading.get_ident(), np.geterr()["divide"], x[blocks[0]] / 0))
        if blocks[0].start == failing:
            raise RuntimeError("broken")

    for failing in (None, 0, 1):
        with np.errstate(divide="ignore"):
            if failing is None:
                execution.in_blocks(np, function, 2)
            else:
                with pytest.raises(RuntimeError, match="broken"):
                    execution.in_blocks(np, function, 2)
    assert len(seen) == 6 and len({thread for thread, *_ in seen}) == 2 and {state for _, state, _ in seen} == {"ignore"}


def test_an_error_is_raised_once_every_thread_has_ended(monkeypatch):
    monkeypatch.setattr(execution, "CACHE_BLOCK", 1)
    monkeypatch.setattr(execution, "cores", lambda: 3)
    ended, failed = [], threading.Event()

    def function(blocks):
        if blocks[0].start == 1:
            failed.set()
            raise RuntimeError("broken")
        assert failed.wait(60)
        time.sleep(0.05)
        ended.append(blocks[0].start)

    with pytest.raises(RuntimeError, match="broken"):
        execution.in_blocks(np, function, 3)
    assert sorted(ended) == [0, 2]


def test_at_the_interpreters_end_the_caller_does_it_all(monkeypatch):
    class Full:
        def submit(self, *arguments):
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(execution, "_threads", lambda count: Full())
    monkeypatch.setattr(execution, "CACHE_BLOCK", 1)
    monkeypatch.setattr(execution, "cores", lambda: 3)
    done = []
    execution.in_blocks(np, done.extend, 5)
    assert sorted(b.start for b in done) == [0, 1, 2, 3, 4]


def test_there_is_one_pool_whatever_the_number_of_blocks(monkeypatch):
    started, start = [], threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    monkeypatch.setattr(execution, "CACHE_BLOCK", 1)
    monkeypatch.setattr(execution, "cores", lambda: 5)
    execution._threads.cache_clear()
    try:
        for n in range(12):
            execution.in_blocks(np, lambda blocks: None, n)
        assert len(started) == 4
    finally:
        execution._threads.cache_clear()


@pytest.mark.parametrize("to_be_had", [0, 1, 2])
def test_without_more_threads_the_caller_does_it_all_once(to_be_had, monkeypatch):
    """Also where a thread comes free, or can be had again, later."""
    allowed, started, start = [to_be_had], [], threading.Thread.start

    def limited(thread):
        if len(started) >= allowed[-1]:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    monkeypatch.setattr(execution, "CACHE_BLOCK", 1)
    monkeypatch.setattr(execution, "cores", lambda: 4)
    execution._threads.cache_clear()
    try:
        done = [[], []]
        execution.in_blocks(np, done[0].extend, 5)
        allowed.append(100)
        execution.in_blocks(np, done[1].extend, 5)
        for thread in started:
            thread.join(60)
        assert len(started) == to_be_had and [sorted(b.start for b in blocks) for blocks in done] == [[0, 1, 2, 3, 4]] * 2
    finally:
        execution._threads.cache_clear()


def test_half_as_many_threads_do_where_all_are_not_to_be_had(monkeypatch):
    class Limited(execution.ThreadPoolExecutor):
        def submit(self, *arguments):
            if self._max_workers > 4:
                raise RuntimeError("can't start new thread")
            return super().submit(*arguments)

    monkeypatch.setattr(execution, "ThreadPoolExecutor", Limited)
    monkeypatch.setattr(execution, "CACHE_BLOCK", 1)
    monkeypatch.setattr(execution, "cores", lambda: 10)
    execution._threads.cache_clear()
    done, seen = [], set()
    try:
        execution.in_blocks(np, lambda blocks: (done.extend(blocks), seen.add(threading.get_ident()), time.sleep(0.01)), 12)
    finally:
        execution._threads.cache_clear()
    assert sorted(b.start for b in done) == list(range(12)) and 2 <= len(seen) <= 5


def test_an_interrupt_while_threads_are_started_leaves_none_waiting(monkeypatch):
    started, start = [], threading.Thread.start

    def interrupted(thread):
        started.append(thread)
        start(thread)
        if len(started) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr(execution, "CACHE_BLOCK", 1)
    monkeypatch.setattr(execution, "cores", lambda: 4)
    execution._threads.cache_clear()
    try:
        with pytest.raises(KeyboardInterrupt):
            execution.in_blocks(np, lambda blocks: None, 5)
        for thread in started:
            thread.join(60)
        assert len(started) == 2 and not any(thread.is_alive() for thread in started)
    finally:
        execution._threads.cache_clear()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [1, 10, 1 << 18])
def test_sums_are_those_of_einsum(device, k, block, monkeypatch):
    monkeypatch.setattr(execution, "CACHE_BLOCK", block)
    rng = np.random.default_rng(0)
    weights, a = rng.random(size=(k, 4)) * [1, -1, 1, -1], rng.random(size=(k, 4, 75))  # no sum has terms of both signs
    close = dict(rtol=8 * np.finfo(float).eps, atol=0)
    for xp in np, device:
        there = xp.asarray(a)
        wider = rng.random(size=(k, 4, 7))  # layers of different widths, weights of their own
        both, weights_there = [there, xp.asarray(wider)], [xp.asarray(weights), xp.asarray(2 * weights)]
        for found, expected in ((weighted_sums(xp, [xp.asarray(weights)], [there])[0], np.einsum("kb,kbn->bn", weights, a)),
                                (squares(xp, both)[0], np.einsum("kbn,kbn->kb", a, a)),
                                (squares(xp, both)[1], np.einsum("kbn,kbn->kb", wider, wider)),
                                (column_squares(xp, there[0]), np.einsum("mi,mi->i", a[0], a[0])),
                                (column_squares(xp, there[:, 0]), np.einsum("mi,mi->i", a[:, 0], a[:, 0]))):
            assert found.shape == expected.shape and np.allclose(to_host(found), expected, **close)
        totals = weighted_sums(xp, weights_there, both)
        again = weighted_sums(xp, [xp.asarray(weights[::-1].copy())] * 2, both, totals)
        assert all(one is other for one, other in zip(again, totals, strict=True))
        for total, w, layer in zip(totals, (weights + weights[::-1], 2 * weights + weights[::-1]), (a, wider), strict=True):
            assert np.allclose(to_host(total), np.einsum("kb,kbn->bn", w, layer), **close)
        strided = xp.asarray(np.ascontiguousarray(a.transpose(2, 0, 1))).transpose(1, 2, 0)
        assert np.allclose(to_host(weighted_sums(xp, [xp.asarray(np.ascontiguousarray(weights.T)).T], [strided])[0]),
                           np.einsum("kb,kbn->bn", weights, a), **close)
        assert weighted_sums(xp, [], []) == squares(xp, []) == []


def check_marks(xp, n, dtype):
    other = "float64" if dtype == "float32" else "float32"  # of the arrays that one kernel looks at
    arrays = []
    for i, value in enumerate((0, np.inf, -np.inf, np.nan, np.nan)):
        a = np.linspace(-1, 1, n).astype(dtype)
        a[[0, n // 2, n - 1, min(1 << 18, n - 1), 0][i]] = value  # the kernel has 2^18 threads
        arrays += [xp.asarray(a), xp.asarray(np.ones((i, 3), dtype=other))]
    marks = xp.zeros(11)
    mark_nonfinite(xp, arrays, marks[:10])
    assert np.isfinite(to_host(marks)).tolist() == [True, True, *[False, True] * 4, True]
    mark_nonfinite(xp, [], marks[:0])
    if xp is not np:  # it is elements that are looked at, and no sum
        marks = xp.zeros(2)
        mark_nonfinite(xp, [xp.asarray(np.full(300, np.finfo(dtype).max, dtype)), xp.asarray(np.ones(0, dtype))], marks)
        assert to_host(marks).tolist() == [0, 0]


def test_a_kernel_does_not_get_more_arrays_than_it_takes(fake_cupy):
    arrays = [fake_cupy.asarray(np.full(2, np.nan if i in (0, 63, 64, 299) else 1.0)) for i in range(300)]
    marks = fake_cupy.zeros(300)
    mark_nonfinite(fake_cupy, arrays, marks)
    assert np.flatnonzero(np.isnan(marks.get())).tolist() == [0, 63, 64, 299]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 300, 600_000])
def test_numbers_that_are_not_finite_are_marked(fake_cupy, n, dtype):
    check_marks(np, n, dtype)
    check_marks(fake_cupy, n, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 300, 600_000])
def test_numbers_that_are_not_finite_are_marked_on_a_gpu(real_cupy, n, dtype):
    check_marks(real_cupy, n, dtype)


@pytest.mark.parametrize("block", [1, 7, 10**6])
@pytest.mark.parametrize("device", [False, True])
def test_an_elementwise_function_reaches_every_element_once(fake_cupy, monkeypatch, device, block):
    def add(x, nothing, y, number):
        assert nothing is None
        x += number * y

    monkeypatch.setattr(execution, "CACHE_BLOCK", block)
    xp, rng = fake_cupy if device else np, np.random.default_rng(0)
    x, y = rng.normal(size=(3, 20, 5)), rng.normal(size=(20, 5))
    x_there = xp.asarray(x.copy())
    elementwise(xp, add, (x_there, None, xp.asarray(y)), (2.0,))
    assert np.array_equal(to_host(x_there), x + 2 * y)


def test_a_fused_function_is_itself_on_a_cpu_and_one_kernel_on_a_device(fake_cupy):
    def add(x, y, number):
        x += y * number

    assert fused(np, add) is add
    kernel = fused(fake_cupy, add)
    assert kernel is fused(fake_cupy, add) is not add, "or it would be compiled again and again"
    x = fake_cupy.asarray(np.ones(3))
    kernel(x, fake_cupy.asarray(np.arange(3.0)), 2.0)
    assert x.get().tolist() == [1, 3, 5]


def test_a_device_gets_one_block(fake_cupy):
    lists = []
    execution.in_blocks(fake_cupy, lists.append, 10**9, 10**9)
    assert lists == [[slice(0, 10**9)]]


def test_cores_are_those_that_blas_may_use(monkeypatch):
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert 1 <= execution.cores() <= os.cpu_count()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert execution.cores() == 5
    monkeypatch.setenv("MKL_NUM_THREADS", "4")
    assert execution.cores() == 4
    monkeypatch.delenv("MKL_NUM_THREADS")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert execution.cores() == 3
    for none in ("many", "0", "-1", ""):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", none)
        assert execution.cores() == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own():
    code = """
import os, numpy as np
from npref import execution
execution.CACHE_BLOCK, execution.cores = 1, (lambda: 2)
execution.in_blocks(np, lambda blocks: None, 4)
child = os.fork()
execution.in_blocks(np, lambda blocks: None, 4)
if child:
    print(os.waitpid(child, 0)[1])
else:
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0", done.stderr


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    """20 MB, freed, stay with the process: in use beside what was there before, as the kernel counts it."""
    code = """
import os
import numpy as np
from npref.execution import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
keep_freed_memory()
before = resident()
a = np.ones(20 * 10**6, dtype=np.uint8)
del a
print(resident() - before)
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs Linux's /proc")
    assert int(run_python(code)[0]) > 15 * 10**6
    assert int(run_python(code.replace("\nkeep_freed_memory()", ""))[0]) < 5 * 10**6


def test_another_c_library_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError("no such library")
    monkeypatch.setattr(execution.ctypes, "CDLL", missing)
    execution.keep_freed_memory()
    monkeypatch.setattr(execution.ctypes, "CDLL", lambda name: object())
    execution.keep_freed_memory()

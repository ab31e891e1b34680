"""The oracle's command line, and the arrays, files and adapters that it is given."""

import fractions
import gc
import itertools
import os
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from golden import BUILT_IN, SMALL, golden

from npref import oracle
from npref.oracle import checker as checking
from npref.oracle import files
from npref.oracle.__main__ import main
from npref.oracle.conventions import CONVENTIONS
from npref.oracle.files import read, write


def run(capsys, *arguments):
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def broken(case):
    return broken_within(case)


def broken_within(case):
    return broken_deep_within(case)


def broken_deep_within(case):
    raise RuntimeError("my code\nis broken")


BROKEN = broken_deep_within.__code__.co_firstlineno + 1


def broken_elsewhere(case):
    return fractions.Fraction("one half")


def assigns(case):
    case.x = case.x + 1


def stacks_nothing(case):
    return np.stack([])


def test_an_error_within_a_library_is_told_with_the_adapters_line():
    """Nor with a place in the code that Python makes of a dataclass."""
    for adapter, words in ((assigns, "cannot assign to field 'x'"), (stacks_nothing, "need at least one array to stack"),
                           (broken_elsewhere, "Invalid literal for Fraction: 'one half'")):
        with pytest.raises(oracle.CannotRun) as raised:
            oracle.compare(*golden("hand/bp")[:1], CONVENTIONS["paper"], golden("hand/bp")[1], adapter)
        assert words in str(raised.value) and str(raised.value).endswith(f" ({__file__}:{adapter.__code__.co_firstlineno + 1})")


def test_an_error_without_any_of_the_users_code_is_told_without_a_place():
    with pytest.raises(oracle.CannotRun) as raised:
        checking.load_adapter("no_such_module:f")
    assert str(raised.value) == "cannot import no_such_module: ModuleNotFoundError: No module named 'no_such_module'"
    assert checking._where(ValueError("what")) == "ValueError: what"
    assert checking._where(NotImplementedError()) == "NotImplementedError:"


def wordy(case):
    raise ValueError("word " * 1000)


async def later(case):
    return {}


def nothing(case):
    return None


def misnamed(case):
    return {"dw": [0]}


def too_many(case):
    return {"dW": [0, 0, 0]}


def listed_dL(case):
    return {"dL": [1.0]}


def one_dW(case):
    return {"dW": case.W[0]}


def int_keys(case):
    return {0: case.W[0]}


def leaving(case):
    raise SystemExit(0)


def skipping(case):
    pytest.skip("not for me")


def empty(case):
    return {}


def listed(case):
    return [1]


def complex_numbers(case):
    return {"loss": np.ones(len(case.x)) * 1j}


def flipped(case):
    return {"dL": -oracle.self(case)["dL"]} if case.rule != "bp" else None


def some(case):
    """All but x_star, dR and, of hand/dbp, the first layer's a."""
    right = {q: a for q, a in oracle.self(case).items() if q not in ("x_star", "dR")}
    return right | {"a": [None, *right["a"][1:]]} if case.name == "hand/dbp" else right


def test_check_names_what_was_not_returned_and_so_not_compared(capsys):
    adapter = ["--adapter", "test_oracle_cli:some"]
    code, out, err = run(capsys, "check", SMALL, *adapter, "--cases", "hand/bp", "hand/dbp", "--dtype", "float32")
    assert (code, err) == (0, "") and out.splitlines()[-3:-1] == ["not returned 2 times, so not compared: x_star, g",
                                                                  "not returned 1 time, so not compared: a, dR"]
    assert [r.missing for r in checking.check(SMALL, some, cases="hand/bp")] == [("x_star", "g")] * 2
    code, out, err = run(capsys, "check", SMALL, "--adapter", "npref.oracle:self", "--cases", "hand/np", "--quiet")
    assert (code, err, len(out.splitlines())) == (0, "", 1)


def test_check_prints_a_table_and_tells_by_its_exit_code(capsys):
    code, out, err = run(capsys, "check", SMALL, "--adapter", "npref.oracle:self", "--cases", "hand/*", "danp/dense2*")
    assert code == 0 and err == "" and "danp/dense2-bias-k3" in out and out.splitlines()[-1].startswith("14 ok, 0 wrong, 0 skipped")
    words = ["--adapter", "test_oracle_cli:flipped", "--cases", "*/dense2-bias*"]
    code, out, err = run(capsys, "check", SMALL, *words, "--dtype", "float32")
    assert code == 1 and "first wrong: dL, at worst [" in out and "hint: the sign: clean minus noisy" in out and "float64" not in out
    assert "skipped: the adapter does not support it" in out
    code, quiet, _ = run(capsys, "check", SMALL, *words, "--quiet")
    assert code == 1 and "skipped:" not in quiet and "WRONG" in quiet


@pytest.mark.parametrize("arguments, words", [
    (["check", SMALL, "--adapter", "npref"], "named module:object, such as npref.oracle:self, got 'npref'"),
    (["check", SMALL, "--adapter", "npref.oracle:"], "named module:object"),
    (["check", SMALL, "--adapter", ":self"], "named module:object"),
    (["check", SMALL, "--adapter", "npref.oracle:self:twice"], "module npref.oracle has no self:twice"),
    (["check", SMALL, "--adapter", "no_such_module:f"], "cannot import no_such_module"),
    (["check", SMALL, "--adapter", "npref.oracle:nothing"], "has no nothing"),
    (["check", SMALL, "--adapter", "npref.oracle:TOLERANCE"], "npref.oracle:TOLERANCE must be a function of a case, got int"),
    (["check", SMALL, "--adapter", "test_oracle_cli:broken"],
     f"bp/dense2-bias in float64: the adapter raised RuntimeError: my code is broken ({__file__}:{BROKEN})"),
    (["check", SMALL, "--adapter", "test_oracle_cli:nothing"], "every case was skipped"),
    (["check", SMALL, "--adapter", "test_oracle_cli:misnamed"],
     "bp/dense2-bias: the adapter returned 'dw/0'; expected x_star, a, x, loss, g, dW, db"),
    (["check", SMALL, "--adapter", "test_oracle_cli:too_many"], "returned 'dW/2'"),
    (["check", SMALL, "--adapter", "test_oracle_cli:empty"],
     "returned nothing that can be checked; expected any of x_star, a, x, loss, g, dW, db"),
    (["check", SMALL, "--adapter", "test_oracle_cli:listed"], "returns a dict of arrays, or None if it does not support a case, got list"),
    (["check", SMALL, "--adapter", "test_oracle_cli:complex_numbers"],
     "loss cannot be made a NumPy array: TypeError: expected real numbers, got complex128"),
    (["check", SMALL, "--adapter", "npref.oracle:self", "--cases", "nope*"], "no case in"),
    (["check", SMALL, "--adapter", "npref.oracle:self", "--cases", "hand/bp", "nope*"],
     f"matches 'nope*': python -m npref.oracle list {SMALL} shows"),
    (["check", SMALL, "--adapter", "test_oracle_cli:listed_dL", "--cases", "hand/np"], "returned 'dL/0'; dL is one array"),
    (["check", SMALL, "--adapter", "test_oracle_cli:one_dW", "--cases", "hand/np"],
     "returned 'dW'; dW is a list of 2 arrays, one a layer"),
    (["check", SMALL, "--adapter", "test_oracle_cli:int_keys", "--cases", "hand/np"], "returned 0; expected x_star"),
    (["check", SMALL, "--adapter", "test_oracle_cli:leaving", "--cases", "hand/np"], "the adapter raised SystemExit: 0"),
    (["check", SMALL, "--adapter", "test_oracle_cli:skipping", "--cases", "hand/np"], "the adapter raised Skipped: not for me ("),
    (["check", SMALL, "--adapter", "npref.oracle:self", "--convention", "keras"], "invalid choice: 'keras'"),
    (["check", "nowhere.h5", "--adapter", "npref.oracle:self"], "no file nowhere.h5"),
    (["check", "", "--adapter", "npref.oracle:self"], "no file : write one with python -m npref.oracle write VECTORS.h5"),
    (["check", __file__, "--adapter", "npref.oracle:self"], "got another kind of file"),
    (["check", SMALL, "--adapter", "./test_oracle_cli:broken"],
     "expected a module's name, got a path: in the folder . it is --adapter test_oracle_cli:broken"),
    (["check", SMALL, "--adapter", "a/b/mine.py:f"], "got a path: in the folder a/b it is --adapter mine:f"),
    (["check", SMALL, "--adapter", "mine.py:f"], "got a path: in the folder . it is --adapter mine:f"),
    (["check", SMALL, "--adapter", "..mine:f"], "got a path: in the folder . it is --adapter mine:f"),
    (["check", SMALL, "--adapter", "test_oracle_cli:wordy"], "ValueError: " + "word " * 97 + "wor ... (" + __file__),
    (["list", __file__], "got another kind of file"),
    (["show", SMALL, "nope"], "no case in"), (["show", SMALL, "hand/*"], f"is named 'hand/*': python -m npref.oracle list {SMALL} shows"),
    (["write", "no/such/folder/a.h5"], "no folder"),
    (["write", "a.h5", "--cases", "nope"], "no case built in matches 'nope': python -m npref.oracle list shows the names"),
    (["write", __file__], "is not a file of golden vectors"),
    (["frobnicate"], "invalid choice"),
    ([], "required"),
], ids=str)
def test_mistakes_are_one_line_and_exit_code_2(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1, (code, out, err)


def test_an_adapter_that_is_to_be_awaited_is_one_line_too(capsys, recwarn):
    code, out, err = run(capsys, "check", SMALL, "--adapter", "test_oracle_cli:later")
    assert code == 2 and "got coroutine" in err and err.count("\n") == 1
    gc.collect()
    assert not recwarn.list


def test_nothing_is_printed_before_the_file_is_found(capsys):
    assert run(capsys, "check", "nowhere.h5", "--adapter", "npref.oracle:self")[1] == ""


def test_a_part_of_a_file_is_said_to_be_one(capsys, tmp_path):
    """And it is not replaced: what else it was nobody knows."""
    path = tmp_path / "part.h5"
    path.write_bytes(SMALL.read_bytes()[:5000])
    for arguments, words in ((("check", path, "--adapter", "npref.oracle:self"), "damaged, or a part of a file only"),
                             (("write", path), "is not a file of golden vectors: choose another name, or remove it")):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and words in err and err.count("\n") == 1
    assert path.stat().st_size == 5000


@pytest.mark.parametrize("name", ["x" * 300 + ".h5", "/proc/x.h5"])
def test_where_nothing_can_be_written_no_case_is_computed(capsys, tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "_computed", None)
    code, _, err = run(capsys, "write", tmp_path / name)
    assert code == 2 and f"cannot write {tmp_path / name}: " in err and err.endswith("choose another folder or name\n")
    assert err.count("\n") == 1 and not any(tmp_path.iterdir())


def test_a_name_that_is_not_there_is_looked_up_in_the_same_file(capsys, tmp_path):
    path = tmp_path / "my vectors.h5"
    path.write_bytes(SMALL.read_bytes())
    assert f"python -m npref.oracle list '{path}' shows the names" in run(capsys, "show", path, "nope")[2]


def test_a_header_that_cannot_be_read_is_said_to_be_so(capsys, tmp_path):
    whole, path = SMALL.read_bytes().partition(files.SEAL)[0], tmp_path / "v.h5"  # or nothing would get as far as HDF5
    for byte in range(0, 2000, 97):  # signature, superblock, and what the root group's attributes lie in
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 8]) + whole[byte + 1 :])
        code, _, err = run(capsys, "show", path, "hand/bp")
        assert code == 0 and err == "" or code == 2 and err.count("\n") == 1, byte
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "npref oracle"
    code, _, err = run(capsys, "list", path)
    assert code == 2 and "v.h5: damaged" in err and "write it anew" in err and err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_write_after_a_case(capsys, tmp_path, monkeypatch, number):
    handlers, written, write_case = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], [], files._write_case

    def signalled(*arguments):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # in a hurry
        written.append(write_case(*arguments))

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(files, "_write_case", signalled)
    code, _, err = run(capsys, "write", tmp_path / "v.h5", "--cases", "hand/*")
    assert code == 128 + number and err == "" and len(written) == 1 and not list(tmp_path.iterdir())
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("lost", [False, True])
def test_ctrl_c_ends_a_check_even_if_its_exception_gets_lost(capsys, lost):
    seen, late = [], []

    def adapter(case):
        seen.append(case.name)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as what runs in a callback of the interpreter's may do
            if not lost:
                raise
        late.append(case.name)

    sys.modules["interrupted"] = SimpleNamespace(adapter=adapter)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests that a shell runs in the background do not have
    try:
        code, _, err = run(capsys, "check", SMALL, "--adapter", "interrupted:adapter")
        assert code == 130 and err == "" and len(seen) <= 2 and bool(late) == lost
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        del sys.modules["interrupted"]
        signal.signal(signal.SIGINT, before)


def test_a_check_leaves_signals_to_a_caller_who_has_seen_to_them(capsys):
    """As to a shell, whose commands in the background ignore Ctrl-C; another thread could not change them."""
    def adapter(case):
        signal.raise_signal(signal.SIGINT)

    sys.modules["interrupted"] = SimpleNamespace(adapter=adapter, other=lambda case: None)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code, _, err = run(capsys, "check", SMALL, "--adapter", "interrupted:adapter", "--cases", "hand/*")
        assert code == 2 and "every case was skipped" in err and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with ThreadPoolExecutor(1) as pool:
            words = ["check", str(SMALL), "--adapter", "interrupted:other", "--cases", "hand/*"]
            assert pool.submit(main, words).result() == 2 and "every case was skipped" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before)
        del sys.modules["interrupted"]


def test_a_stop_ends_the_processes_that_compute(tmp_path, monkeypatch):
    """After the cases that they are at, and before all others."""
    before, ours, ends = set(active_children()), [], []

    class Kept(files.ProcessPoolExecutor):
        def shutdown(self, **how):
            ends.append(how)
            super().shutdown(**how)

    def stop(done, of):
        ours.extend(set(active_children()) - before)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "ProcessPoolExecutor", Kept)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "v.h5", "hand/*", stop, processes=2)
    assert ends[0] == {"cancel_futures": True} and len(ours) == 2 and {process.exitcode for process in ours} == {0}
    assert set(active_children()) <= before and not list(tmp_path.iterdir())


def test_a_damaged_file_is_refused_before_hdf5_sees_it(capsys, tmp_path, monkeypatch):
    """Which would go round in circles with some blocks lost. It may be written anew, other files may not."""
    path = tmp_path / "v.h5"
    assert run(capsys, "write", path, "--cases", "hand/*")[0] == 0
    whole = path.read_bytes()
    assert whole.count(files.SEAL) == 1 and run(capsys, "list", path)[0] == 0
    monkeypatch.setattr(files.h5py, "File", lambda *arguments, **named: pytest.fail("HDF5 was asked to read it"))
    end = whole.index(files.SEAL)
    for start in (at for at in range(0, end, 2048) if any(whole[at:end][:2048])):
        path.write_bytes(whole[:start] + bytes(len(whole[start:end][:2048])) + whole[start:end][2048:] + whole[end:])
        code, out, err = run(capsys, "list", path)
        assert (code, out) == (2, "") and "v.h5: damaged, its sha256 is not the one at its end: write it anew" in err
    monkeypatch.undo()
    assert run(capsys, "write", path, "--cases", "hand/*")[0] == 0 and len(list(read(path))) == 5
    path.write_bytes(b"mine")
    assert run(capsys, "write", path)[0] == 2 and path.read_bytes() == b"mine"


def test_a_damaged_file_is_refused(capsys, tmp_path):
    copy = tmp_path / "copy.h5"
    shutil.copy(SMALL, copy)
    with h5py.File(copy, "r+") as file:
        file["hand/np/outputs/dW/0"][...] = 25
    code, _, err = run(capsys, "check", copy, "--adapter", "npref.oracle:self", "--cases", "hand/*")
    assert code == 2 and "damaged" in err and "sha256" in err
    with h5py.File(copy, "r+") as file:
        file.attrs["version"] = 2
    code, _, err = run(capsys, "list", copy)
    assert code == 2 and "expected version 1" in err


def test_list_and_show(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0 and len(out.splitlines()) == len(BUILT_IN)
    code, out, _ = run(capsys, "list", SMALL)
    assert code == 0 and "hand/anp" in out and "‖δa‖² = 17" in out
    code, out, _ = run(capsys, "show", SMALL, "danp/conv-stride-bias-k3")
    assert code == 0 and "Conv(channels=2, kernel=(3, 2), stride=(2, 1)" in out and "dW/0                 (2, 2, 3, 2)" in out
    code, out, _ = run(capsys, "show", SMALL, "hand/bp", "--values")
    assert code == 0 and "[[4. 8.]]" in out


def test_write_prints_its_count(capsys, tmp_path):
    code, out, _ = run(capsys, "write", tmp_path / "a.h5", "--cases", "hand/*")
    assert code == 0 and out.startswith("5 cases written")
    code, _, _ = run(capsys, "write", tmp_path / "a.h5", "--cases", "hand/bp")  # golden vectors may be replaced
    assert code == 0 and [case.name for case, _ in read(tmp_path / "a.h5")] == ["hand/bp"]


class Tensor:
    """As PyTorch's: an array only once it has left graph, device and lazy sign, in this order."""

    def __init__(self, a, left=()):
        self.a, self.left = a, left

    detach, cpu, resolve_neg = (lambda self, name=name: Tensor(self.a, (*self.left, name)) for name in ("detach", "cpu", "resolve_neg"))

    def __array__(self, dtype=None, copy=None):
        assert self.left == ("detach", "cpu", "resolve_neg")
        return self.a

    def __dlpack__(self, **options):
        raise BufferError("__array__ comes first")


class DLPackOnly:
    def __init__(self, a):
        self.a = a

    def __dlpack__(self, **options):
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.a.__dlpack_device__()


@pytest.mark.parametrize("library", ["number", "dlpack", "tensor", "torch", "jax", "cupy", "cupy._core.core"])
def test_arrays_of_other_libraries(library, request):
    a = np.array([[1.5, -2.0]], dtype=np.float32)
    if library == "number":
        assert checking.to_numpy(3) == 3.0
        return
    if library == "dlpack":
        b = DLPackOnly(a)
    elif library == "tensor":
        b = Tensor(a)
    elif library.startswith("cupy"):
        module = request.getfixturevalue("fake_cupy")
        b = type("ndarray", (module.ndarray,), {"__module__": library})(a)
    elif library == "torch":
        torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[adapters]"')
        b = torch.tensor(a, requires_grad=True)
        assert np.array_equal(checking.to_numpy(b.bfloat16()), a)
    else:
        jnp = pytest.importorskip("jax", reason='needs JAX: pip install -e ".[adapters]"').numpy
        b = jnp.asarray(a)
        assert np.array_equal(checking.to_numpy(b.astype(jnp.bfloat16)), a)
    out = checking.to_numpy(b)
    assert type(out) is np.ndarray and out.dtype == np.float64 and np.array_equal(out, a)


def test_a_masked_array_is_refused():
    with pytest.raises(TypeError, match="^expected an array without a mask$"):
        checking.to_numpy(np.ma.masked_invalid([1.0, np.nan]))


def in_float64(case):
    return oracle.self(case.cast("float64"))


def in_float64_in_the_end(case):
    return (oracle.self if case.name == "np/dense2-bias-k1" else in_float64)(case)


def inputs_alone(case):
    return {"x_star/0": case.x}


@pytest.mark.parametrize("adapter, dtype, told", [
    (oracle.self, None, False), (in_float64, None, True), (in_float64, "float32", True), (in_float64, "float64", False),
    (in_float64_in_the_end, None, False), (inputs_alone, "float32", False)])
def test_float32_cases_computed_in_float64_are_told(capsys, monkeypatch, adapter, dtype, told):
    """They pass all the same. Numbers that are exact in either tell nothing."""
    monkeypatch.setattr(oracle, "adapter_under_test", adapter, raising=False)
    code, out, _ = run(capsys, "check", SMALL, "--adapter", "npref.oracle:adapter_under_test", "--cases", "np/dense2*",
                       *(["--dtype", dtype] if dtype else []))
    assert code == 0 and ("computed in float64, and float32 was not checked" in out) == told


@pytest.mark.parametrize("columns", ["1", "80"])
def test_help_tells_each_convention_apart(capsys, monkeypatch, columns):
    """In a terminal of any width."""
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = run(capsys, "check", "--help")
    assert code == 0
    for name, convention in CONVENTIONS.items():
        lines = out[out.index(f"\n  {name}:") :].split("\n")[1:]
        own = [lines[0], *itertools.takewhile(lambda line: line.startswith("    "), lines[1:])]
        assert "".join(" ".join(own).split()) == "".join(f"{name}: {convention.text}".split())
        assert max(map(len, own)) <= max(20, int(columns))

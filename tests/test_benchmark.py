"""The benchmark: its counts by hand, its table, its mistakes. No test looks at a time."""

import json
import re
import signal
import sys

import benchmark
import numpy as np
import pytest

from npref import Conv, Dense, Network
from npref.config import Config

DENSE = Network((20,), (Dense(8), Dense(3)))
CONV = Network((2, 5, 5), (Conv(4, 3, 2), Conv(5, 2), Dense(3)))
WIDENING, NARROWING = Network((2,), (Dense(2), Dense(4))), Network((4,), (Dense(2), Dense(1)))  # x* left out in layer 1, in layer 2
SMALL = "--archs fc1 --batch-size 8 --rounds 1".split()


@pytest.mark.parametrize("network, method, K, size, expected", [
    (DENSE, "bp", 1, 1, {"clean pass": 10 * (160 + 24), "update": 10 * (160 + 24), "backward pass": 10 * 24}),
    (DENSE, "dbp", 1, 1, {"clean pass": 10 * (160 + 24 + 400 + 64), "update": 10 * 184, "backward pass": 10 * 24 + 3 * 64,
                          "R": 2 * 10 * 400 + 10 * 64 / 2 + 8**3}),  # 20 inputs are many for 10 rows, 8 are few
    (DENSE, "np", 4, 3, {"clean pass": 1840, "update": 1840, "noisy passes": 4 * 240}),
    (DENSE, "danp", 4, 3, {"clean pass": 6480, "update": 1840, "noisy passes": 3 * 64 + 4 * 240, "R": 8832}),
    (DENSE, "dinp", 1, 1, {"clean pass": 6480, "update": 1840, "noisy passes": 3 * 64 + 240, "R": 8832}),
    (CONV, "anp", 2, 2, {"clean pass": 10 * (4 * 18 * 4 + 16 * 5 + 15), "update": 10 * 383, "noisy passes": 20 * 95}),
    (CONV, "inp", 2, 2, {"clean pass": 3830, "update": 3830, "noisy passes": 20 * (80 + 2 * 15)}),
    (WIDENING, "dbp", 1, 1, {"clean pass": 8 + 10 * 4 + 10 * (4 + 8), "update": 10 * 4 + 8 + 10 * 8, "backward pass": 10 * 8 + 4 * 4,
                             "R": 10 * 4 / 2 + 3 * 8 + 10 * 4 / 2 + 8}),
    (NARROWING, "dbp", 1, 1, {"clean pass": 10 * (16 + 8) + 4 + 10 * 2, "update": 10 * 8 + 10 * 2 + 4, "backward pass": 10 * 2,
                              "R": 10 * 16 / 2 + 64 + 10 * 4 / 2 + 3 * 8}),
    (NARROWING, "danp", 3, 2, {"clean pass": 264, "update": 104, "noisy passes": 3 * 10 * 2, "R": 188}),
], ids=str)
def test_the_floor_counts_multiply_adds(network, method, K, size, expected):
    """Ten samples; counted by hand, layer by layer."""
    found, listed = {}, benchmark.products(network, method, 10, K, size)
    for part, kind, m, k, n in listed:
        found[part] = found.get(part, 0) + m * k * n / (2 if kind == "syrk" else 1)
    assert found == expected
    floor = benchmark.Floor(np, listed, "float32")
    assert [(*a.shape, b.shape[1], *out.shape) for _, a, b, out in floor.calls] == [(m, k, n, m, n) for _, _, m, k, n in listed]
    floor()
    _, a, b, out = floor.calls[-1]
    assert a.dtype == out.dtype == np.float32 and np.allclose(out, a @ b)


def test_few_rows_leave_the_product_with_R_where_it_is():
    listed = benchmark.products(Network((4,), (Dense(6), Dense(50))), "danp", 10, 1, 1)
    assert [call[1:5] for call in listed if call[0] == "noisy passes"] == [("nt", 10, 6, 6), ("nt", 10, 6, 50)]


def test_the_table_and_the_json(tmp_path, capsys):
    out = tmp_path / "rows.json"
    code = benchmark.main([*SMALL, "--methods", "bp", "danp", "--samples", "1", "2", "--noise", "gaussian", "rademacher",
                           "--against", "plain", "--json", str(out)])
    text, rows = capsys.readouterr().out, json.loads(out.read_text())["rows"]
    assert benchmark.parse(["--json", str(out)]).json == out  # its own may be replaced
    assert code == 0 and "standard_normal" in text and "TFLOP/s" in text and "peak of this process" in text
    assert [(r["method"], r["samples"], r["noise"]) for r in rows] == [
        ("bp", 1, "-"), ("danp", 1, "gaussian"), ("danp", 1, "rademacher"), ("danp", 2, "gaussian"), ("danp", 2, "rademacher")]
    for row in rows:
        assert row["step"] > 0 and row["floor"] > 0 and row["ratio"] == row["step"] / row["floor"] and row["against"]["plain"] > 0
        assert all(seconds >= 0 for seconds in row["shares"].values()) and row["memory"] > 0
    lines = [line for line in text.splitlines() if line.startswith(("method", "bp", "danp"))]
    assert len(lines) == 6 and lines[0].split()[-1] == "plain" and lines[1].endswith("x")


def test_scaling_is_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")

    def measured(config, backend, rounds, against, shares):
        step = config.samples * config.batch_size * int(config.arch[2:])
        return benchmark.Row(config.method, config.arch, config.samples, config.noise, config.batch_size, step, step / 2, 1.0, {}, 1.0)

    monkeypatch.setattr(benchmark, "measure", measured)
    assert benchmark.main(["--scaling", str(tmp_path / "p.png"), "--methods", "danp", "bp", "--no-shares"]) == 0
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG" and "p.png" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, words", [
    (["--samples", "0"], "--samples must be at least 1, got 0"),
    (["--batch-size", "-1"], "--batch-size must be at least 1, got -1"),
    (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    (["--scaling", "p.png", "--samples", "3"], "--scaling has its own K, depths and batch sizes: leave out --samples"),
    (["--scaling", "p.png", "--batch-size", "3"], "leave out --batch-size"),
    (["--methods", "xnp"], "invalid choice: 'xnp'"),
    (["--methods", "bp", "dbp", "--samples", "10"], "--samples and --noise have no effect on bp and dbp"),
    (["--json", "nowhere/rows.json"], "--json names a file in a folder that is there, got nowhere/rows.json"),
    (["--json", __file__], "is there already and none of ours, remove it or name another file"),
    (["--scaling", __file__], "is there already and none of ours, remove it or name another file"),
    (["--scaling", "."], "--scaling names a file in a folder that is there, got ."),
    (["--backend", "cupy"], "CuPy"),
])
def test_mistakes(arguments, words, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    try:
        code = benchmark.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and words in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_signal_ends_it_after_a_line(tmp_path, capsys, monkeypatch, handlers):
    measure = benchmark.measure

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return measure(*arguments)

    monkeypatch.setattr(benchmark, "measure", interrupted)
    assert benchmark.main([*SMALL, "--methods", "bp", "np", "--json", str(tmp_path / "rows.json")]) == 130
    out, err = capsys.readouterr()
    assert err == f"stopped after 1 lines; nothing was written to {tmp_path / 'rows.json'}\n" and not list(tmp_path.iterdir())
    assert len(out.splitlines()) == 3


def test_torch_that_is_missing_is_asked_for(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert benchmark.main([*SMALL, "--against", "torch"]) == 2
    assert 'needs PyTorch: pip install -e ".[adapters]"' in capsys.readouterr().err


def test_on_the_stand_in(fake_cupy, monkeypatch, tmp_path):
    def once(xp, contestants, rounds):
        for name, call in contestants.items():
            if name != "gemm":
                call()
        return dict.fromkeys(contestants, 0.5)

    monkeypatch.setattr(benchmark, "timed", once)
    assert benchmark.main([*SMALL, "--backend", "cupy", "--methods", "dbp", "inp", "--samples", "2", "--json", str(tmp_path / "j")]) == 0
    report = json.loads((tmp_path / "j").read_text())
    assert report["device"] == "stand-in device" and [row["method"] for row in report["rows"]] == ["dbp", "inp"]
    assert all(row["step"] == 0.5 and row["ratio"] == 1 for row in report["rows"])


def test_a_device_is_timed_over_fifty_calls_in_a_row(fake_cupy, monkeypatch):
    clock, calls = [0.0], []

    def work():
        calls.append(clock[0])
        clock[0] += 3.0

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    assert benchmark.timed(fake_cupy, {"work": work}, 2) == {"work": 3.0} and len(calls) == 150
    calls.clear()
    assert benchmark.timed(np, {"work": work}, 2) == {"work": 3.0} and len(calls) == 3


def test_the_memory_that_a_call_takes(fake_cupy):
    assert 8e6 <= benchmark.peak_memory(np, lambda: np.ones(10**6)) < 8.1e6
    assert benchmark.peak_memory(fake_cupy, lambda: setattr(fake_cupy.pool, "held", 3 * 10**6)) == 2 * 10**6


def test_pytorch_on_a_gpu(capsys, real_cupy):
    pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[adapters]"')
    assert benchmark.main([*SMALL, "--backend", "cupy", "--methods", "danp", "--against", "torch", "torch-algebra"]) == 0
    assert len(re.findall(r"\d\.\d\dx", capsys.readouterr().out.splitlines()[2])) == 2


def test_pytorch_without_cuda_is_refused(capsys, fake_cupy, monkeypatch):
    torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[adapters]"')
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main([*SMALL, "--backend", "cupy", "--against", "torch"]) == 2
    assert "needs a PyTorch that can use the GPU" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["fc3", "conv"])
@pytest.mark.parametrize("name", ["torch", "torch-algebra"])
@pytest.mark.parametrize("method", ["bp", "dbp", "np", "dnp", "inp", "dinp", "anp", "danp"])
def test_pytorch_gives_the_same_numbers(name, method, arch):
    pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[adapters]"')
    import torch_steps

    network = DENSE if arch == "fc3" else CONV
    config = Config(method=method, arch=arch, **({} if "bp" in method else dict(samples=3, noise="rademacher")))
    torch_steps.check(name, config, network)
    step = torch_steps.step(name, config, network, benchmark.initial_state(config, network).params,
                            np.ones((4, *network.input_shape), dtype=np.float32), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], 1)
    step()
    with pytest.MonkeyPatch.context() as patch:
        whole = torch_steps.gradients
        patch.setattr(torch_steps, "gradients", lambda *a: ([1.001 * d for d in whole(*a)[0]], whole(*a)[1]))
        with pytest.raises(ValueError, match="dW_1 differs from npref's by"):
            torch_steps.check(name, config, network)

"""The benchmark: its counts by hand, its table, its mistakes. No test looks at a time."""

import json
import platform
import re
import signal
import sys
from collections import Counter
from types import SimpleNamespace

import benchmark
import numpy as np
import pytest

from npref import METHODS, Conv, Dense, Network, get_backend, layers, noise, rules
from npref.config import Config
from npref.step import initial_state, training_step

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


def test_the_products_of_a_step_have_its_shapes_and_order():
    assert benchmark.products(NARROWING, "bp", 10, 1, 1) == [
        ("clean pass", "nt", 10, 4, 2), ("update", "tn", 2, 10, 4),
        ("clean pass", "nt", 10, 2, 1), ("update", "tn", 1, 10, 2), ("backward pass", "nn", 10, 1, 2)]


@pytest.mark.parametrize("method, K, formed", [("danp", 1, [1]), ("danp", 2, [1, 2]), ("dinp", 1, [1, 2])])
def test_the_rows_of_all_noisy_passes_decide_whether_R_and_W_become_one(method, K, formed):
    """Ten rows a pass, and INP has two in layer 2: enough for 6 units, and for 18 where there are twice as many."""
    listed = benchmark.products(Network((4,), (Dense(6), Dense(6), Dense(18))), method, 10, K, K)
    assert [call[2] for call in listed if call[:2] == ("noisy passes", "nn")] == [(None, 6, 18)[l] for l in formed]


@pytest.mark.parametrize("B, forms", [(10, 0), (12, 1)])
def test_the_positions_of_a_convolution_count_as_rows(B, forms):
    """The first of CONV has 4 units, 18 inputs and 4 positions, and x* is left out beyond 44 rows."""
    assert benchmark.products(CONV, "danp", B, 1, 1).count(("clean pass", "nn", 4, 18, 18)) == forms


def test_the_floors_operands_lie_as_a_steps_do():
    listed = [("", "nt", 2, 3, 4), ("", "nn", 5, 6, 7), ("", "tn", 3, 9, 8), ("", "syrk", 5, 6, 5)]
    calls = benchmark.Floor(np, listed, "float32").calls
    assert [(a.flags.c_contiguous, b.flags.c_contiguous) for _, a, b, _ in calls] == [
        (True, False), (True, True), (False, True), (False, True)]
    assert [np.shares_memory(a, b) for _, a, b, _ in calls] == [False, False, False, True]  # BLAS computes a half of rowsᵀ rows


def test_a_part_of_the_floor():
    computed = []
    xp = SimpleNamespace(asarray=np.asarray, matmul=lambda a, b, out: computed.append(out.shape))
    benchmark.Floor(xp, benchmark.products(DENSE, "dbp", 10, 1, 1), "float32").part("R")()
    assert computed == [(10, 20), (20, 20), (8, 8), (8, 8)]


def test_the_median_of_the_rounds_after_a_warm_up(monkeypatch):
    clock, seconds = [0.0], iter([50.0, 9.0, 1.0, 2.0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    assert benchmark.timed(np, {"work": lambda: clock.__setitem__(0, clock[0] + next(seconds))}, 3) == {"work": 2.0}


def test_rounds_mix_what_is_compared():
    order = []
    benchmark.timed(np, {name: lambda name=name: order.append(name) for name in "abc"}, 5)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(names) == [*"abc"] for names in rounds) and len({*rounds}) > 1


def test_a_device_is_waited_for(fake_cupy, monkeypatch):
    clock, asked = [0.0], []  # a second for each thing that was asked of it, once it is waited for

    def synchronize(xp):
        clock[0] += len(asked)
        asked.clear()

    monkeypatch.setattr(benchmark, "synchronize", synchronize)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    assert benchmark.timed(fake_cupy, {name: lambda: asked.append(1) for name in "ab"}, 2) == {"a": 1.0, "b": 1.0}


SECONDS = {"step": 0.008, "floor": 0.002, "plain": 0.012, "noise": 0.0004, "losses": 0.00024, "optimiser": 0.0008,
           "decorrelation": 0.0016, "R products": 0.0004, "im2col": 0.00032, "batch": 0.004, "gemm": 0.5}


@pytest.fixture
def stated(monkeypatch):
    """`timed` calls nothing and gives SECONDS; the contestants and rounds of every call. 3.25 MB is what a step takes."""
    calls = []

    def timed(xp, contestants, rounds):
        calls.append((contestants, rounds))
        return {name: SECONDS.get(name, 0.001) for name in contestants}

    monkeypatch.setattr(benchmark, "timed", timed)
    monkeypatch.setattr(benchmark, "peak_memory", lambda xp, function: 3.25e6)
    return calls


def test_what_is_printed_of_known_seconds(stated, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "sys", SimpleNamespace(platform="linux", path=sys.path))
    monkeypatch.setattr(benchmark.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2 * 10**6))  # KiB
    monkeypatch.setattr(benchmark, "cores", lambda: 3)
    arguments = "--archs sarcos --batch-size 64 --dtype float64 --rounds 12 --methods bp danp --against plain".split()
    assert benchmark.main([*arguments, "--json", str(tmp_path / "j")]) == 0
    lines, report = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "j").read_text())
    assert "3 threads" in lines[0] and "float64" in lines[0]
    assert lines[1].split()[8:] == "GMAC noise elementw losses optimise decorrel im2col batch MB plain".split()
    assert lines[3].split()[:8] == ["danp", "sarcos", "1", "gaussian", "64", "0.0080", "0.0020", "4.00"]
    # Of 6 ms beside the floor 2.96 have a cause: R's products are the floor's, and fetching a batch is not of the step.
    assert lines[3].split()[9:] == ["5.0%", "38.0%", "3.0%", "10.0%", "15.0%", "4.0%", "50.0%", "3", "1.50x"]
    clean, noisy, R = 21 * 32 + 32 * 32 + 32 * 7, 32 * 32 + 32 * 7, 1.5 * (21**2 + 2 * 32**2)  # of a row
    gmac = [64 * (2 * clean + noisy) / 1e9, (64 * (2 * clean + noisy + R) + 32**3 + 7 * 32**2 + 21**3 + 2 * 32**3) / 1e9]
    assert [row["gmac"] for row in report["rows"]] == pytest.approx(gmac)
    flops = [2 * g / 0.008 / 1e3 for g in gmac]
    assert lines[4:] == [f"ns a number: {', '.join(f'{name} 0.95' for name in ('numpy standard_normal', *noise.KINDS))}",
                         f"matrix products of 4096: 0.275 TFLOP/s; bp sarcos K=1: {flops[0]:.3f}, danp sarcos K=1: {flops[1]:.3f}",
                         "peak of this process: 2048 MB"]
    assert (report["threads"], report["dtype"], report["gemm_seconds"], report["rows"][0]["memory"]) == (3, "float64", 0.5, 3.25)
    assert report["noise_ns"] == dict.fromkeys(("numpy standard_normal", *noise.KINDS), 1e6 / 2**20)
    assert [rounds for _, rounds in stated] == [12, 6, 12, 6, 7, 3]
    monkeypatch.setattr(benchmark, "resource", None)
    assert benchmark.main([*arguments, "--json", str(tmp_path / "j")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == lines[-2] and json.loads((tmp_path / "j").read_text())["peak_mb"] is None


def test_a_line_without_shares_and_with_two_opponents():
    row = benchmark.Row("np", "fc3", 2, "gaussian", 10, 0.5, 0.25, 1.5, {}, 7.0, {"torch": 3.0, "plain": 2.0})
    head, line = benchmark.table([row], ("plain", "torch")).split("\n")
    assert head.split()[-3:] == ["MB", "plain", "torch"]
    assert line.split() == ["np", "fc3", "2", "gaussian", "10", "0.5000", "0.2500", "2.00", "1.50", *"-------", "7", "2.00x", "3.00x"]


def test_no_shares_are_taken_where_none_are_wanted(stated, capsys):
    assert benchmark.main("--archs sarcos --batch-size 4 --methods np --no-shares".split()) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[9:] == [*"-------", "3"]
    assert len(stated) == 3


def test_what_is_left_of_a_step_is_not_negative(stated, monkeypatch):
    """A part that is timed alone may take longer than it does in a step."""
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", SECONDS | {"losses": 0.01, "R products": 0.002})
    shares = benchmark.measure(Config(method="danp", arch="sarcos", batch_size=4), get_backend(), 1).shares
    assert shares["elementwise"] == shares["decorrelation"] == 0 and "R products" not in shares
    assert [rounds for _, rounds in stated] == [1, 3]


def test_the_memory_is_a_training_steps(stated, monkeypatch):
    steps = []
    monkeypatch.setattr(benchmark, "training_step", lambda *arguments: steps.append(arguments))
    monkeypatch.setattr(benchmark, "peak_memory", lambda xp, function: function() or 2e6)
    row = benchmark.measure(config := Config(method="np", arch="sarcos", batch_size=4), get_backend(), 1, shares=False)
    assert row.memory == 2 and [(step[0], step[3].shape) for step in steps] == [(config, (4, 21))]


@pytest.mark.parametrize("arch, first, classes", [("conv", (15 * 15, 27), 10), ("conv-tiny", (30 * 30, 75), 200), ("sarcos", (1, 21), 7)])
def test_the_inputs_are_the_data_sets(stated, arch, first, classes):
    benchmark.measure(Config(method="bp", arch=arch, batch_size=1), get_backend(), 1, shares=False)
    calls = stated[0][0]["floor"].calls
    assert calls[0][1].shape == first and classes in [out.shape[1] for *_, out in calls]


def test_a_device_computes_both_halves_and_is_not_waited_for_at_once(stated, fake_cupy, monkeypatch):
    gmac, waited = [], []
    monkeypatch.setattr(benchmark, "start_step", lambda *arguments: (None, lambda: waited.append(arguments[-1])))
    for name in ("numpy", "cupy"):
        gmac.append(benchmark.measure(Config(method="dbp", arch="sarcos", batch_size=64), get_backend(name), 1, shares=False).gmac)
        for _ in range(6):
            stated[-1][0]["step"]()
    assert gmac[1] - gmac[0] == pytest.approx(64 * (21**2 + 2 * 32**2) / 2 / 1e9)
    assert waited == [0, 1, 2, 3, 4, 5, 0, 1]  # four steps behind


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_have_the_steps_dtype(stated, monkeypatch, capsys, dtype):
    """The floor's, and those of 4096, of which a small one stands in here."""
    asked, Floor = [], benchmark.Floor

    def floor(xp, listed, dtype):
        asked.append(dtype)
        return Floor(xp, listed if listed[0][2] != 4096 else [("", "nn", 1, 1, 1)], dtype)

    monkeypatch.setattr(benchmark, "Floor", floor)
    assert benchmark.main([*SMALL, "--methods", "danp", "--dtype", dtype]) == 0
    assert asked == [dtype] * 2 and {a.dtype for call in stated[0][0]["floor"].calls for a in call[1:]} == {np.dtype(dtype)}


def test_noise_samples_that_do_not_fit_are_apart_in_the_floor(stated, monkeypatch):
    monkeypatch.setattr(benchmark, "samples_budget", lambda xp: 0)
    row = benchmark.measure(Config(method="anp", arch="sarcos", samples=3, batch_size=8), get_backend(), 1, shares=False)
    assert row.samples == 3 and [a.shape for part, a, *_ in stated[0][0]["floor"].calls if part == "noisy passes"] == [(8, 32)] * 6


@pytest.mark.parametrize("method", METHODS)
def test_the_parts_do_what_a_step_does(method, monkeypatch):
    """As many images of a layer unfolded, losses taken and noise samples drawn."""
    done = Counter()

    def counted(name, function, count):
        def call(*arguments, **options):
            done.update({(name, key): n for key, n in [count(*arguments, **options)] if n})
            return function(*arguments, **options)
        return call

    unfold = counted("images", layers.unfold, lambda layer, x: ((layer, x.shape[1:]), len(x) * isinstance(layer, Conv)))
    loss = counted("losses", rules.loss_of, lambda name, y, t: (name, y.size))
    for module in (sys.modules["npref.network"], rules, benchmark):
        monkeypatch.setattr(module, "unfold", unfold)
    for module in (rules, benchmark):
        monkeypatch.setattr(module, "loss_of", loss)
    monkeypatch.setattr(noise, "draw_layers", counted("noise", noise.draw_layers,
                                                      lambda *a, samples, rows, **o: ("", len(samples) * len(rows))))
    config = Config(method=method, arch="conv", **({} if "bp" in method else {"samples": 3}))
    x, t = np.ones((4, *CONV.input_shape), dtype=np.float32), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    state = initial_state(config, CONV)
    parts = benchmark.parts(config, CONV, state, x, t, None, SimpleNamespace(xp=np, part=lambda name: f"the part {name}"))
    done.clear()
    for name in ("im2col", "losses", "noise"):
        parts[name]()
    of_parts = dict(done)
    done.clear()
    training_step(config, CONV, state, x, t, 0)
    assert of_parts == dict(done) and parts["R products"] == "the part R"
    called = []
    monkeypatch.setattr(benchmark, "adam_step", lambda parameters, updates, *more: called.append((len(parameters), len(updates))))
    monkeypatch.setattr(benchmark, "decorrelation_step", lambda Rs, trace, alpha: called.append([R is not None for R in Rs]))
    parts["optimiser"](), parts["decorrelation"]()
    assert called == [(len(CONV.layers),) * 2, [method.startswith("d")] * len(CONV.layers)]


def test_the_noise_that_is_timed(monkeypatch):
    drawn, made = [], {}
    monkeypatch.setattr(benchmark, "draw", lambda xp, kind, shape, sigma, *, samples, rows, dtype, **where: drawn.append(
        (kind, len(samples) * len(rows) * shape[0], dtype)))
    monkeypatch.setattr(benchmark, "timed", lambda xp, rows, rounds: made.update({name: call() for name, call in rows.items()}) or {})
    benchmark.noise_table(np, n=4096)
    assert drawn == [(kind, 4096, "float32") for kind in noise.KINDS]
    assert made["numpy standard_normal"].size == 4096 and made["numpy standard_normal"].dtype == np.float32


def test_configurations_have_what_was_asked_for():
    args = benchmark.parse("--methods bp np --archs fc1 conv --batch-size 5 6 --samples 2 --noise rademacher --dtype float64".split())
    assert [(c.arch, c.batch_size, c.method, c.samples, c.noise, c.dtype) for c in benchmark.configurations(args)] == [
        (arch, B, *rest, "float64") for arch in ("fc1", "conv") for B in (5, 6)
        for rest in (("bp", 1, "gaussian"), ("np", 2, "rademacher"))]


def test_configurations_of_the_scaling():
    args = benchmark.parse("--scaling p.png --methods bp np --dtype float64".split())
    found = [(c.method, c.samples, c.arch, c.batch_size, c.dtype) for c in benchmark.scaling_configurations(args)]
    assert found == [(method, *rest, "float64") for method, most in (("bp", 1), ("np", 30)) for rest in (
        *((K, "fc3", 1000) for K in (1, 3, 10, 20, 30) if K <= most), (1, "fc6", 1000), (1, "fc9", 1000),
        *((1, "fc3", B) for B in (250, 500, 2000, 4000)))]


def test_somebody_elses_picture_stays(tmp_path, capsys):
    path = tmp_path / "p.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(SystemExit):
        benchmark.parse(["--scaling", str(path)])
    assert "is there already and none of ours, remove it or name another file" in capsys.readouterr().err


def test_the_table_and_the_json(tmp_path, capsys):
    out = tmp_path / "rows.json"
    code = benchmark.main([*SMALL, "--methods", "bp", "danp", "--samples", "1", "2", "--noise", "gaussian", "rademacher",
                           "--against", "plain", "--json", str(out)])
    text, report = capsys.readouterr().out, json.loads(out.read_text())
    rows, versions = report["rows"], {"python": platform.python_version(), "numpy": np.__version__}
    assert text.startswith(f"{report['device']}; python {versions['python']}, numpy {np.__version__}, {report['threads']} threads; ")
    assert report["versions"] == versions and report["backend"] == "numpy" and report["peak_mb"] > 0 and report["revision"]
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
    (["--scaling", "p.svg"], "--scaling names a .png file, which is what is drawn, got p.svg"),
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
    synchronized = fake_cupy.counts["synchronize"]
    assert benchmark.peak_memory(fake_cupy, lambda: fake_cupy.allocators[-1](2 * 10**6)) == 2 * 10**6
    assert fake_cupy.allocators == [None] and fake_cupy.counts["synchronize"] == synchronized + 1


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

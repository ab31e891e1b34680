"""PyTorch's forms of a training step, which benchmarks compare with: a step of each is npref's, and what is claimed of them holds."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import benchmark
import numpy as np
import pytest

from npref import METHODS, Conv, Dense, Network, loss
from npref.config import Config
from npref.noise import draw_layers
from npref.step import compute_update, initial_state, training_step

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[adapters]"')
import torch_steps

B = torch_steps.CHECKED
FORMS = ("torch", "torch-algebra")
OUT = Dense(3, activation="identity")
WIDE = Network((30,), (Dense(2), OUT))  # R's form for few rows in layer 1, and x* left out in layer 2
CONV = Network((2, 5, 5), (Conv(3, 3, 2, 1), Conv(5, 2), OUT))  # x* left out in layers 1 and 2
NETWORKS = pytest.mark.parametrize("network", [WIDE, CONV], ids=["wide", "conv"])


def setting(network, method, **options):
    rng = np.random.default_rng(0)
    config = Config(method=method, arch="conv", lr=0.01, dtype="float64", batch_size=B, **({} if "bp" in method else options))
    return config, rng.random((B, *network.input_shape)), np.eye(3)[rng.integers(3, size=B)]


def stepping(monkeypatch, name, config, network, x, t, **more):
    """`step`'s function, and the Net whose parameters it changes."""
    nets, whole = [], torch_steps.Net
    monkeypatch.setattr(torch_steps, "Net", lambda *a: nets.append(whole(*a)) or nets[0])
    return torch_steps.step(name, config, network, initial_state(config, network).params, x, t, 1, **more), nets[0]


@NETWORKS
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_a_training_step(method, name, network, monkeypatch):
    """Two, with npref's noise. Of one of Adam's, the size is lr's, so of the first R says more, and of the second W."""
    config, x, t = setting(network, method, samples=3, sigma2=0.01)
    drawn = iter(range(2))
    monkeypatch.setattr(torch_steps, "draw_noise", lambda net, rows: [torch.tensor(e) for e in draw_layers(
        np, config.noise, list(enumerate(network.shapes[1:])), 0.1, seed=0, step=next(drawn), samples=range(3), rows=range(rows),
        dtype="float64")])
    run, net = stepping(monkeypatch, name, config, network, x, t)
    state = initial_state(config, network)
    for i in range(2):
        run()
        training_step(config, network, state, x, t, i)
    for ours, theirs in zip((*state.params.W, *state.params.R), (*net.W, *net.R)):
        assert ours is theirs is None or np.allclose(theirs.detach().numpy(), ours, rtol=0, atol=1e-9)


@NETWORKS
@pytest.mark.parametrize("method", METHODS)
def test_the_algebra_does_the_products_of_the_floor(method, network, monkeypatch):
    """Counted by PyTorch: all of rowsᵀ rows, a product for the sum of K errors, and DBP's errors times W, then R, as autograd goes."""
    from torch.utils.flop_counter import FlopCounterMode

    config, x, t = setting(network, method, samples=3)
    run, net = stepping(monkeypatch, "torch-algebra", config, network, x, t)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: lambda a, b, c, **o: 2 * b[0] * b[1] * c[1]}) as counter:
        run()
    listed = benchmark.products(network, method, B, config.samples, config.samples)
    sums = 0 if "bp" in method else config.samples * B * sum(network.units)
    products = sum((B if part == "backward pass" and k == n else m) * k * n for part, _, m, k, n in listed)
    assert counter.get_total_flops() == 2 * (products + sums)


@NETWORKS
@pytest.mark.parametrize("rows", [4, B, 60])
def test_x_star_is_left_out_where_npref_leaves_it_out(network, rows):
    config, x, t = setting(network, "dbp")
    x, t = np.tile(x, (4, *[1] * (x.ndim - 1)))[:rows], np.tile(t, (4, 1))[:rows]
    params = initial_state(config, network).params
    x_star, net = compute_update(config, network, params, x, t, 0).trace.x_star, torch_steps.Net(config, network, params)
    assert [net.spares(l, rows) for l in range(len(net.layers))] == [rows is None for rows in x_star]


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_noise_has_the_variance_and_every_sample_its_own(kind):
    config = Config(method="np", samples=3, sigma2=0.04, noise=kind)
    torch.manual_seed(0)
    drawn = torch_steps.draw_noise(torch_steps.Net(config, WIDE, initial_state(config, WIDE).params), 5000)
    assert [tuple(e.shape) for e in drawn] == [(3, 5000, 2), (3, 5000, 3)] and {e.dtype for e in drawn} == {torch.float32}
    together = np.concatenate([e.numpy().reshape(3, -1) for e in drawn], axis=1)
    assert np.corrcoef(together) == pytest.approx(np.eye(3), abs=0.03) and together.mean() == pytest.approx(0, abs=0.005)
    assert together.std() == pytest.approx(0.2, rel=0.01) and (np.ptp(abs(together)) == 0) == (kind == "rademacher")


def test_the_loss_is_npref_s_in_float64():
    y = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    t = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    assert np.allclose(torch_steps.loss(torch.tensor(y), torch.tensor(t)).numpy(), loss("cce", y, t), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name, fused, compiled", [("torch", None, 0), ("torch-algebra", True, 0), ("torch-compile", None, 1)])
def test_how_each_form_is_run(name, fused, compiled, monkeypatch):
    made, adam, threads = Counter(), torch.optim.Adam, torch.get_num_threads()
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **options: made.update({("fused", options["fused"]): 1}) or adam(*a, **options))
    monkeypatch.setattr(torch, "compile", lambda function: made.update(compiled=1) or function)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    config, x, t = setting(WIDE, "danp")
    try:
        torch_steps.step(name, config, WIDE, initial_state(config, WIDE).params, x, t, threads + 1)()
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert made["fused", fused] == 1 and made["compiled"] == compiled and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_on_its_device(method, kind, monkeypatch):
    """All but Adam's counters, which PyTorch reads in every step: on a GPU each would be waited for."""
    config, x, t = setting(CONV, method, noise=kind)
    made, adam = [], torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **options: made.append(adam(*a, **options)) or made[0])
    run, net = stepping(monkeypatch, "torch", config, CONV, x, t, device="meta")
    run()
    moments, Rs = [made[0].state[w] for w in net.W], [R for R in net.R if R is not None]
    assert {a.device.type for w, m in zip(net.W, moments) for a in (w, w.grad, m["exp_avg"])} | {R.device.type for R in Rs} == {"meta"}
    assert [m["step"].item() for m in moments] == [1] * len(net.W)
    noise = None if net.rule == "bp" else torch_steps.draw_noise(net, B)  # the algebra's Adam knows no such device
    dW, seen = torch_steps.gradients("torch-algebra", net, torch.tensor(x, device="meta"), torch.tensor(t, device="meta"), noise)
    assert {a.device.type for a in (*dW, *seen)} == {"meta"}
    if net.decorrelate:
        torch_steps.decorrelate_algebra(net, seen)


@pytest.mark.parametrize("what, part, change", [
    ("dW_1", 0, lambda d: d + 0.01 * abs(d).max()), ("dW_2", 0, lambda d: d - 0.01 * abs(d).max()), ("dW_2", 0, lambda d: d * torch.nan),
    ("R_0", 1, lambda rows: rows * 1.005), ("R_1", 1, lambda rows: rows * torch.nan)],
    ids=["dW_1-more", "dW_2-less", "dW_2-nan", "R_0-more", "R_1-nan"])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_with_other_numbers_is_refused(name, what, part, change, monkeypatch):
    whole = torch_steps.gradients

    def changed(*arguments):
        found = [*map(list, whole(*arguments))]
        found[part][int(what[-1]) - (part == 0)] = change(found[part][int(what[-1]) - (part == 0)])
        return found

    monkeypatch.setattr(torch_steps, "gradients", changed)
    with pytest.raises(ValueError, match=f"{name} danp on conv: {what}.* differs from npref's by (0.01|nan) of its largest number"):
        torch_steps.check(name, setting(WIDE, "danp")[0], WIDE)


def test_a_form_that_mistakes_R_for_its_transpose_is_refused(monkeypatch):
    monkeypatch.setattr(torch_steps.Net, "fused", lambda net, l: (net.W[l].flatten(1) @ net.R[l].T).reshape(net.W[l].shape))
    with pytest.raises(ValueError, match="differs from npref's"):
        torch_steps.check("torch-algebra", setting(WIDE, "danp")[0], WIDE)


@pytest.mark.parametrize("batch_size, seen", [(16, False), (60, True)])
def test_the_form_that_is_timed_is_checked(batch_size, seen, monkeypatch):
    """With 16 rows no R of 28 or 30 inputs is changed by the moment, whose diagonal is kept here by mistake; with 60 both are."""
    monkeypatch.setattr(torch.Tensor, "fill_diagonal_", lambda *arguments: None)
    config = replace(setting(WIDE, "danp")[0], batch_size=batch_size)
    network = Network((30,), (Dense(28), Dense(28, activation="identity")))
    if seen:
        with pytest.raises(ValueError, match="R_0's change differs from npref's"):
            torch_steps.check("torch-algebra", config, network)
    else:
        torch_steps.check("torch-algebra", config, network)


def test_another_loss_is_refused():
    with pytest.raises(ValueError, match="PyTorch's steps have the cross-entropy loss, got mse"):
        torch_steps.check("torch", setting(WIDE, "np", loss="mse")[0], WIDE)


def test_a_benchmark_checks_each_form_and_times_its_step(monkeypatch, capsys):
    asked, seconds = [], {"step": 0.5, "torch": 1.0, "torch-algebra": 0.75}
    monkeypatch.setattr(torch_steps, "check", lambda name, config, network: asked.append(("check", name, config.method)))
    monkeypatch.setattr(torch_steps, "step", lambda name, config, network, params, x, t, threads, device: asked.append(
        ("step", name, x.shape, t.shape, threads, device)))
    monkeypatch.setattr(benchmark, "timed", lambda xp, contestants, rounds: {name: seconds.get(name, 0.25) for name in contestants})
    monkeypatch.setattr(benchmark, "cores", lambda: 3)
    assert benchmark.main("--archs fc1 --batch-size 8 --methods np --no-shares --against torch torch-algebra".split()) == 0
    assert asked == [call for name in FORMS for call in (("check", name, "np"), ("step", name, (8, 3, 32, 32), (8, 10), 3, "cpu"))]
    assert capsys.readouterr().out.splitlines()[2].split()[-2:] == ["2.00x", "1.50x"]


def test_a_benchmark_on_a_device_times_pytorch_there(fake_cupy, monkeypatch):
    devices = []
    monkeypatch.setattr(torch_steps, "check", lambda *a: None)
    monkeypatch.setattr(torch_steps, "step", lambda *a: devices.append((type(a[4]), type(a[5]), a[-1])))
    config, x, t = setting(WIDE, "np")
    benchmark.opponent("torch", config, WIDE, SimpleNamespace(xp=fake_cupy), fake_cupy.asarray(x), fake_cupy.asarray(t), None)
    assert devices == [(np.ndarray, np.ndarray, "cuda")]

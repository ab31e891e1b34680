"""How much of δL is rounding: the measure against wider arithmetic, and who hears of it."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from reference import random_batch, random_params
from test_train import same_bytes, small_data, weights, without_seconds

from npref import Conv, Dense, Network, Params, forward, loss, noise, precision, rules, runlog
from npref.config import Config
from npref.precision import NoiseFloorWarning, rounding_error
from npref.step import initial_state
from npref.train import Interrupted, train

METHODS = ("np", "inp", "anp", "dnp", "dinp", "danp")
LONGDOUBLE = pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="needs a long double that is wider than float64")


def setting(config, conv=False, activation="leaky_relu", B=100):
    options = dict(activation=activation, bias=True)
    layers = [Conv(4, 3, 2, **options), Dense(30, **options)] if conv else [Dense(60, **options), Dense(40, **options)]
    network = Network((2, 6, 6), (*layers, Dense(10, activation="identity", bias=True)))
    rng = np.random.default_rng(0)
    return network, random_params(rng, network, config.method.startswith("d"), config.dtype), *random_batch(rng, network, B, config.dtype)


def measured(config, network, params, x, t):
    return rounding_error(config, network, params, x, t)


def differences(config, network, params, x, t, dtype):
    """δL by whole passes in `dtype`, of parameters and noise as they are in the run's: (passes, B)."""
    cast = lambda arrays: [None if a is None else a.astype(dtype) for a in arrays]  # noqa: E731
    params, x, t = Params(*map(cast, (params.W, params.b, params.R))), x.astype(dtype), t.astype(dtype)

    def draw(stream):
        return cast(noise.draw(np, config.noise, shape, config.sigma2**0.5, seed=config.seed, step=0, layer=l, samples=range(1),
                               rows=range(len(x)), dtype=config.dtype, stream=stream)[0] for l, shape in enumerate(network.shapes[1:]))

    eps = draw(noise.NOISE)
    passes = [eps]
    if config.method.endswith("inp"):
        passes = [[e if m == l else np.zeros_like(e) for m, e in enumerate(eps)] for l in range(len(eps))]
    clean = loss(config.loss, forward(network, params, x, draw(noise.BASELINE) if config.noisy_baseline else None).y, t)
    return np.array([loss(config.loss, forward(network, params, x, e).y, t) - clean for e in passes])


def expected(config, network, params, x, t, wide):
    dL, dL_wide = (differences(config, network, params, x, t, dtype) for dtype in (config.dtype, wide))
    error, size = (np.linalg.norm(d.astype(float), axis=0) for d in (dL - dL_wide, dL_wide))
    return float(np.median(error / np.where(size > 0, size, 1)))  # long doubles can cancel, too


SETTINGS = [*(dict(method=method) for method in METHODS), dict(method="np", noisy_baseline=True), dict(method="danp", noisy_baseline=True),
            dict(method="danp", samples=3, loss="mse"), dict(method="anp", noise="rademacher", loss="mse-mean", seed=3)]


def rows_for(config):
    """How many samples leave every matrix product in the order of a plain forward pass.

    Few, if W R could be formed instead. Else so many that 10 outputs of one pass are as large a product for BLAS as those of INP's
    stacked passes: OpenBLAS has another kernel, which sums in another order, for results of up to 1,200 numbers.
    """
    return 4 if config.method.startswith("d") else 200


@pytest.mark.parametrize("conv", [False, True], ids=["dense", "conv"])
@pytest.mark.parametrize("options", SETTINGS, ids=lambda o: "-".join(map(str, o.values())))
def test_float32_against_float64(options, conv):
    for sigma2 in (1e-6, 1e-12, 1e-14):
        config = Config(**options, sigma2=sigma2)
        case = setting(config, conv, B=rows_for(config))
        assert measured(config, *case) == pytest.approx(expected(config, *case, np.float64), rel=0.15)


@LONGDOUBLE
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("options", SETTINGS, ids=lambda o: "-".join(map(str, o.values())))
def test_float64_against_long_double(options, activation):
    for sigma2 in (1e-24, 1e-28, 1e-30, 1e-32):
        config = Config(**options, dtype="float64", sigma2=sigma2)
        case = setting(config, activation=activation, B=rows_for(config))
        assert measured(config, *case) == pytest.approx(expected(config, *case, np.longdouble), rel=0.15)


@pytest.mark.parametrize("method", ["dnp", "dinp", "danp"])
def test_the_order_of_products_counts(method):
    """With W R formed for the noisy pass alone, its rounding does not cancel the clean pass's: about twice the error."""
    config = Config(method=method, sigma2=1e-14)
    case = setting(config)
    assert 1.5 < measured(config, *case) / expected(config, *case, np.float64) < 3


@LONGDOUBLE
def test_float64_has_a_floor_of_its_own():
    """What is given as 0 is below 1e-5; below that the measure is as fine as where it starts."""
    config = Config(method="np", dtype="float64", sigma2=1e-20)
    case = setting(config)
    assert measured(config, *case) == 0 and expected(config, *case, np.longdouble) < 1e-5
    assert 0 < measured(replace(config, sigma2=1e-21), *case) < 1e-4


@pytest.mark.parametrize("dtype, least", [("float32", 2.0**-126), ("float64", 2.0**-1022)])
def test_noise_that_is_rounded_away_entirely(dtype, least):
    config = Config(method="inp", dtype=dtype, sigma2=least)
    error = measured(config, *setting(config))
    assert error >= 0.9 and np.isfinite(error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ["step", "sign"])
def test_units_that_jump(method, activation):
    config = Config(method=method, activation=activation)
    for conv in (False, True):
        network, params, x, t = setting(config, conv, activation)
        assert measured(config, network, params, x, t) < 1e-3
        assert measured(replace(config, sigma2=1e-16), network, params, x, t) > 0.1


def test_one_unit_on_the_wrong_side_does_not_matter():
    """A pre-activation of 1 + 2^-25 - 1 is above the jump in float64, and on it in float32."""
    config = Config(method="np", activation="step")
    network = Network((3,), (Dense(1, activation="step"), Dense(2, activation="identity")))
    params = Params(tuple(np.array(W, dtype=np.float32) for W in ([[1, 2.0**-25, -1]], [[1e3], [0]])), (None,) * 2, (None,) * 2)
    x, t = np.ones((20, 3), dtype=np.float32), np.eye(2, dtype=np.float32)[np.zeros(20, dtype=int)]
    x[1:] = 0, 0, 1
    assert measured(config, network, params, x, t) < 1e-3


def test_a_black_image_and_units_that_jump():
    """All pre-activations are on the jump, and cross it whatever σ is: δL is no linear function of the noise."""
    config = Config(method="np", activation="step", dtype="float64", sigma2=1e-24)
    network, params, x, t = setting(config, activation="step")
    params = replace(params, b=tuple(np.zeros_like(b) for b in params.b))
    assert measured(config, network, params, np.zeros_like(x), t) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_difference_has_no_error(dtype):
    """Every loss is exactly 0, with the noise and without."""
    config = Config(method="np", dtype=dtype, sigma2=1e-6)
    network, params, x, _ = setting(config)
    params = replace(params, W=(*params.W[:2], params.W[2] * 1e6))
    t = np.eye(10, dtype=dtype)[forward(network, params, x).y.argmax(axis=1)]
    assert measured(config, network, params, x, t) == 0


@pytest.mark.parametrize("spoilt", [np.inf, np.nan, 1e30])
def test_what_is_not_finite_is_left_to_the_step(spoilt):
    config = Config(method="np", sigma2=1e-12)
    network, params, x, t = setting(config)
    params.W[0][...] = spoilt
    params.W[1][...] = spoilt
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = measured(config, network, params, x, t)
        precision.warn_of_rounding(config, error)
        precision.warn_of_rounding(config, float("inf"))
    assert not np.isfinite(error)


@pytest.mark.parametrize("error, said", [(0.09, []), (0.11, ["rounding changes the loss difference δL by 11%"])])
def test_more_than_a_tenth_is_warned_of(error, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        precision.warn_of_rounding(Config(method="np"), error)
    assert [words in str(w.message) for words, w in zip(said, caught, strict=True)] == [True] * len(said)


def test_nothing_is_changed():
    config = Config(method="danp", samples=3)
    network, params, x, t = case = setting(config)
    arrays = [*params.W, *params.b, *params.R, x, t]
    before = [a.copy() for a in arrays]
    assert measured(config, *case) == measured(config, *case)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(arrays, before))


def on_device(xp, config, case):
    network, params, *batch = case
    move = lambda arrays: tuple(None if a is None else xp.asarray(a) for a in arrays)  # noqa: E731
    return measured(config, network, Params(*map(move, (params.W, params.b, params.R))), *move(batch))


@pytest.mark.parametrize("method", METHODS)
def test_on_the_stand_in(fake_cupy, monkeypatch, method):
    """With NumPy's losses: a kernel's differ from them by rounding, which is what is measured here."""
    monkeypatch.setattr(rules, "loss_of", fake_cupy.numpys(rules.loss_of))
    config = Config(method=method, sigma2=1e-12)
    case = setting(config, conv=True)
    fake_cupy.counts.clear()
    assert on_device(fake_cupy, config, case) == measured(config, *case)
    assert fake_cupy.counts["to_host"] == 2


@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu(real_cupy, method):
    config = Config(method=method, sigma2=1e-12)
    case = setting(config, conv=True)
    assert on_device(real_cupy, config, case) == pytest.approx(measured(config, *case), rel=0.6)


# What train says.

RUN = dict(arch="fc3", batch_size=16, epochs=1, dataset="synthetic")


def heard(config, out=None, **options):
    """What `train` warns of before its first step, and the iterator."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = train(config, small_data(), out, **options)
    return [w for w in caught if w.category is NoiseFloorWarning], rows


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_warned(method, tmp_path):
    (warning,), _ = heard(Config(method=method, sigma2=1e-12, **RUN), tmp_path)
    said = re.fullmatch(r"sigma2=1e-12 is too small for float32: as this run starts, rounding changes the loss difference δL by "
                        r"([\d.]+)%; take dtype float64 or a larger sigma2", str(warning.message))
    assert not issubclass(warning.category, RuntimeWarning)  # it is no accident of arithmetic, and errors may be made of those
    assert 10 < float(said[1]) < 100 and warning.filename == __file__
    assert runlog.read_log(tmp_path / "log.h5")["environment"]["rounding"] == f"{float(said[1]) / 100:.2g}"


def test_the_figure_is_that_of_the_first_images():
    config, data = Config(method="np", sigma2=1e-12, **RUN), small_data()
    (warning,), _ = heard(config)
    network = config.network((3, 10, 10), 10)
    x, t = (data.x_train / np.float32(255)).astype("float32"), np.eye(10, dtype="float32")[data.y_train]
    figure = 100 * expected(config, network, initial_state(config, network).params, x, t, np.float64)
    assert float(re.search(r"([\d.]+)%", str(warning.message))[1]) == pytest.approx(figure, rel=0.3)


@pytest.mark.parametrize("options", [
    *(dict(method=method) for method in METHODS), dict(method="np", noisy_baseline=True), dict(method="danp", activation="step"),
    dict(method="dinp", activation="sign"), dict(method="np", sigma2=1e-12, dtype="float64"),
    dict(method="inp", sigma2=1e-12, dtype="float64", activation="step"), dict(method="bp"), dict(method="dbp"),
])
def test_a_healthy_run_hears_nothing(options, tmp_path):
    warned, _ = heard(Config(**options, **RUN), tmp_path)
    assert warned == []
    assert ("rounding" in runlog.read_log(tmp_path / "log.h5")["environment"]) == (options["method"] not in ("bp", "dbp"))


@pytest.mark.parametrize("options", [dict(method="np"), dict(method="dinp"), dict(method="danp", noisy_baseline=True)])
def test_float64_has_its_limits_too(options):
    (warning,), _ = heard(Config(**options, dtype="float64", sigma2=1e-30, **RUN))
    assert "sigma2=1e-30 is too small for float64" in str(warning.message) and str(warning.message).endswith("%; take a larger sigma2")


def test_no_number_of_a_run_depends_on_it(tmp_path, monkeypatch):
    """The same bytes with the measure and without, resumed or not; a resumed run is warned as well."""
    config, count = Config(method="danp", sigma2=1e-12, **{**RUN, "epochs": 2}, optimizer="adam"), iter(range(100))
    warned, rows = heard(config, tmp_path / "stopped", stop=lambda: next(count) == 4)
    with pytest.raises(Interrupted):
        list(rows)
    again, rows = heard(config, tmp_path / "stopped", resume=True)
    assert len(warned) == len(again) == 1 and str(warned[0].message) != str(again[0].message)  # the weights are others by now
    list(rows)
    monkeypatch.setattr("npref.train.rounding_error", lambda *arguments: 0.0)
    nothing, rows = heard(config, tmp_path / "whole")
    rows = list(rows)
    assert nothing == [] and same_bytes(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    assert without_seconds(runlog.read_log(tmp_path / "stopped" / "log.h5")["rows"]) == without_seconds(rows)


def test_a_warning_made_an_error_leaves_the_folder_free(tmp_path):
    config = Config(method="np", sigma2=1e-12, **RUN)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoiseFloorWarning)
        with pytest.raises(NoiseFloorWarning):
            train(config, small_data(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(list(heard(config, tmp_path)[1])) == 1

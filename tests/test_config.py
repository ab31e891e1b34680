from fractions import Fraction

import numpy as np
import pytest

from npref import METHODS
from npref.config import TABLE_2, Config, default_lr
from npref.network import ARCHITECTURES


def test_defaults_are_the_papers():
    c = Config()
    assert (c.batch_size, c.sigma2, c.decor_lr, c.slope, c.init, c.bias, c.padding, c.loss, c.optimizer) == (
        1000, 1e-6, 1e-3, 0.2, "he", False, 0, "cce", "adam")


def test_learning_rates():
    assert Config(method="bp", arch="fc3").lr == 1e-4 and Config(method="dnp", arch="fc6").lr == 5e-4
    assert Config(method="danp", arch="conv").lr == 1e-4 and Config(method="np", lr=0.5).lr == 0.5
    assert Config(method="danp", arch="fc1").lr == 1e-3 and Config(method="np", arch="fc9").lr == 1e-4
    rates = {arch: {default_lr(method, arch) for method in METHODS if method.startswith("d")} for arch in ARCHITECTURES}
    assert rates == {"fc1": {1e-3}, "fc3": {1e-3}, "fc6": {1e-3, 5e-4}, "fc9": {1e-3, 5e-4}, "conv": {1e-3, 1e-4}, "conv-tiny": {1e-3},
                     "sarcos": {1e-3}}  # DBP on fc6 and fc9, DBP and DNP on conv: a choice of ours, or fc3's rate
    assert [m for m in METHODS if default_lr(m, "fc9") == 5e-4 and TABLE_2[m, "fc9"] == 5e-3] == ["dnp", "dinp", "danp"]
    assert [m for m in METHODS if default_lr(m, "conv") == 1e-3] == ["bp", "dbp", "dnp"]
    assert {default_lr(method, "fc1") for method in METHODS} == {1e-3}
    assert len(TABLE_2) == 28 and all(m in METHODS and a in ARCHITECTURES for m, a in TABLE_2)


@pytest.mark.parametrize("options, words", [
    (dict(method="xp"), "unknown method 'xp'"),
    (dict(arch="fc2"), "arch must be one of fc1"),
    (dict(backend="torch"), "backend must be one of numpy, cupy"),
    (dict(dtype="float16"), "dtype must be one of float32, float64"),
    (dict(noise="pink"), "noise must be one of"),
    (dict(anp_norm="sample"), "anp_norm must be one of"),
    (dict(loss="hinge"), "loss must be one of"),
    (dict(optimizer="lion"), "optimizer must be one of"),
    (dict(activation="gelu"), "activation must be one of"),
    (dict(init="zeros"), "init must be one of"),
    (dict(epochs=0), "epochs must be at least 1 and below 2\\^63, got 0"),
    (dict(samples=2**63), "samples must be at least 1 and below 2\\^63"),
    (dict(batch_size=0), "batch_size must be at least 1"),
    (dict(samples=0), "samples must be at least 1"),
    (dict(padding=-1), "padding must be at least 0"),
    (dict(seed=-1), "seed must be at least 0"),
    (dict(lr=0.0), "lr must be positive and finite, got 0.0"),
    (dict(lr=float("nan")), "lr must be positive and finite, got nan"),
    (dict(decor_lr=-1.0), "decor_lr must be positive"),
    (dict(sigma2=float("inf")), "sigma2 must be positive and finite"),
    (dict(optimizer="sgd"), "sgd needs lr"),
    (dict(method="bp", samples=3), "samples=3 has no effect: bp draws no noise; leave it out"),
    (dict(method="dbp", noise="rademacher"), "noise=rademacher has no effect"),
    (dict(method="bp", sigma2=1e-4), "sigma2=0.0001 has no effect"),
    (dict(method="np", decor_lr=1e-2), "decor_lr=0.01 has no effect"),
    (dict(method="dnp", anp_norm="layer"), "anp_norm=layer has no effect"),
    (dict(method="dinp", noisy_baseline=True), "noisy baseline needs noise in all layers at once"),
    (dict(activation="tanh", slope=0.1), "slope=0.1 has no effect"),
    (dict(method="np", sigma2=0.0), "sigma2 must be positive"),
    (dict(sigma2=1e-60), "sigma2=1e-60 is out of float32's range"),
    (dict(sigma2=1e300, dtype="float32"), "out of float32's range"),
    (dict(slope=1.0), r"slope must be in \[0, 1\), got 1.0"),
    (dict(slope=float("nan")), "slope must be finite, got nan"),
    (dict(seed=2**64), "seed must be at least 0 and below 2\\^64"),
    (dict(limit_train=0), "limit_train must be at least 1"),
    (dict(arch="fc1", slope=0.1), "slope=0.1 has no effect: fc1 has no hidden layer"),
    (dict(arch="fc1", activation="tanh"), "activation=tanh has no effect: fc1 has no hidden layer"),
    (dict(arch="fc1", anp_norm="layer"), "anp_norm=layer has no effect: fc1 has no hidden layer"),
    (dict(arch="fc6", padding=2), "padding=2 has no effect: fc6 has no convolution"),
    (dict(method="bp", activation="step"), "bp needs a derivative, which the step activation does not have"),
    (dict(method="dbp", activation="sign"), "dbp needs a derivative, which the sign activation does not have"),
])
def test_mistakes(options, words):
    with pytest.raises(ValueError, match=words):
        Config(**options)


def test_options_that_do_have_an_effect():
    Config(method="danp", samples=3, noise="rademacher", noisy_baseline=True, anp_norm="layer", sigma2=1e-4, decor_lr=1e-2)
    Config(method="np", activation="sign", noisy_baseline=True)
    Config(arch="conv", padding=1, slope=0.0)
    Config(sigma2=1e-60, dtype="float64")


@pytest.mark.parametrize("options", [dict(epochs=1.5), dict(batch_size=2.0), dict(samples=True), dict(seed="1"), dict(limit_test=1.0)])
def test_numbers_that_must_be_whole(options):
    with pytest.raises(TypeError, match="must be an int"):
        Config(**options)


@pytest.mark.parametrize("options, words", [
    (dict(method="anp", noisy_baseline="no"), "noisy_baseline must be True or False, got 'no'"),
    (dict(dataset=3), "dataset must be a name, got 3"),
    (dict(bias=1), "bias must be True or False"), (dict(eval_train=None), "eval_train must be True or False"),
    (dict(sigma2="a"), "sigma2 must be a number, got 'a'"), (dict(lr=True), "lr must be a number, got True"),
    (dict(decor_lr=None), "decor_lr must be a number, got None"), (dict(slope="0.1"), "slope must be a number, got '0.1'"),
])
def test_flags_and_rates_of_another_type(options, words):
    with pytest.raises(TypeError, match=words):
        Config(**options)


def test_whole_numbers_are_pythons_ints():
    config = Config(seed=np.int64(3), epochs=np.uint8(2), limit_test=np.int32(5))
    assert (config.seed, config.epochs, config.limit_test) == (3, 2, 5) and config == Config(seed=3, epochs=2, limit_test=5)
    assert all(type(value) is int for value in (config.seed, config.epochs, config.limit_test)) and config.limit_train is None


def test_rates_are_pythons_floats():
    """A NumPy number would promote float32 arrays, and after a resume, from text, not any more."""
    config = Config(lr=np.float64(0.1), decor_lr=np.float32(0.25), sigma2=Fraction(1, 4), slope=0)
    values = [getattr(config, name) for name in ("lr", "decor_lr", "sigma2", "slope")]
    assert values == [0.1, 0.25, 0.25, 0.0] and all(type(v) is float for v in values)
    with pytest.raises(ValueError, match="lr must be finite"):
        Config(lr=10**400)


def test_building_the_network():
    assert Config(arch="conv", padding=1, bias=True).network((3, 32, 32), 10).shapes[1] == (16, 16, 16)
    with pytest.raises(ValueError, match="layer 3: kernel"):
        Config(arch="conv").network((3, 8, 8), 10)

import math
from dataclasses import replace

import numpy as np
import pytest

from npref import adam_step, init_adam, kernels, sgd_step, to_host
from npref.optim import AdamState


def test_sgd_by_hand():
    w = [np.array([1.0, -2.0]), np.array([[0.5]])]
    sgd_step(w, [np.array([0.5, 1.0]), np.array([[-1.0]])], 0.1)
    assert np.allclose(w[0], [0.95, -2.1], rtol=1e-15) and np.allclose(w[1], [[0.6]], rtol=1e-15)


@pytest.mark.parametrize("eps_hat", [False, True])
def test_adam_by_hand(eps_hat):
    """Two steps of one number, written out; epsilon is large, so that its place shows."""
    w, state, eps, lr = [np.array([1.0])], None, 0.1, 0.01
    state = init_adam(w)
    m = v = 0.0
    expected = 1.0
    for t, d in enumerate((0.3, -0.2), 1):
        m, v = 0.9 * m + 0.1 * d, 0.999 * v + 0.001 * d * d
        if eps_hat:
            expected -= lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (math.sqrt(v) + eps)
        else:
            expected -= lr * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + eps)
        adam_step(w, [np.array([d])], state, lr, eps=eps, eps_hat=eps_hat)
        assert math.isclose(w[0][0], expected, rel_tol=1e-14) and state.t == t
        assert math.isclose(state.m[0][0], m, rel_tol=1e-14) and math.isclose(state.v[0][0], v, rel_tol=1e-14)


def test_adams_default_epsilon_and_betas():
    w = [np.array([0.0])]
    adam_step(w, [np.array([1e-7])], init_adam(w), 1.0)  # m̂ = √v̂ = 1e-7 = ε
    assert math.isclose(w[0][0], -0.5, rel_tol=1e-9)
    adam_step(w := [np.array([0.0])], [np.array([1e-7])], init_adam(w), 1.0, eps_hat=True)
    eta, root = math.sqrt(0.001) / 0.1, math.sqrt(0.001) * 1e-7
    assert math.isclose(w[0][0], -eta * 1e-8 / (root + 1e-7), rel_tol=1e-9)


@pytest.mark.parametrize("cores", [1, 4])
def test_adam_is_elementwise_in_blocks(cores, monkeypatch):
    rng = np.random.default_rng(0)
    w, d = rng.normal(size=(7, 9)), rng.normal(size=(7, 9))
    whole, parts = [w.copy()], [w.copy()]
    adam_step(whole, [d], init_adam(whole), 0.1)
    monkeypatch.setattr("npref.execution.CACHE_BLOCK", 5)
    monkeypatch.setattr("npref.execution.cores", lambda: cores)
    adam_step(parts, [d], init_adam(parts), 0.1)
    assert np.array_equal(whole[0], parts[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype):
    w = [np.ones(3, dtype=dtype)]
    state = init_adam(w)
    adam_step(w, [np.ones(3, dtype=dtype)], state, 0.1)
    sgd_step(w, [np.ones(3, dtype=dtype)], 0.1)
    assert w[0].dtype == state.m[0].dtype == state.v[0].dtype == dtype


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.bool_, np.int64, np.float16, np.float64])
def test_updates_of_another_dtype_are_the_numbers_that_they_are(dtype):
    """Small integers' squares would overflow, and half precision's."""
    d = np.array([1, 0, 1] if dtype == np.bool_ else [100, 0, 25]).astype(dtype) * (10 if dtype == np.float16 else 1)
    parts = [[np.ones(3, dtype=np.float32)] for _ in range(2)]
    states = [init_adam(p) for p in parts]
    for p, state, update in zip(parts, states, (d, d.astype(np.float64))):
        adam_step(p, [update], state, 0.1)
    few = 4 * np.finfo(np.float32).eps
    assert np.allclose(parts[0][0], parts[1][0], rtol=few, atol=0) and states[0].v[0].dtype == np.float32
    assert np.allclose(states[0].v[0], 0.001 * d.astype(float) ** 2, rtol=few, atol=0)
    p = np.zeros(3, dtype=np.float32)
    sgd_step([p], [d], 1e-9)  # below half precision's numbers, and below an integer
    assert np.allclose(p, -1e-9 * d.astype(float), rtol=few, atol=0)


def test_numbers_that_cannot_be_are_refused_before_anything_changes():
    w, d = [np.ones(2)], [np.ones(2)]
    state = init_adam(w)
    for numbers, words in ((dict(lr=np.nan), "lr must be finite, got nan"),
                           (dict(lr=0.1, beta1=1.0), r"must be in \[0, 1\), got 1.0 and 0.999"),
                           (dict(lr=0.1, beta2=-0.1), "got 0.9 and -0.1"), (dict(lr=0.1, beta2=1.0), "got 0.9 and 1.0"),
                           (dict(lr=0.1, eps=np.inf), "eps must be finite"),
                           (dict(lr=0.1, eps=-1e-7), "eps must not be negative, got -1e-07")):
        with pytest.raises(ValueError, match=words):
            adam_step(w, d, state, **numbers)
    for lr in "x", "1e-3", None:
        with pytest.raises(TypeError, match=f"lr must be a number, got {lr!r}"):
            adam_step(w, d, state, lr)
    with pytest.raises(TypeError, match="as npref.step.learnable makes of a Params and an Update has in dW, got AdamState"):
        adam_step(state, d, state, 0.1)
    for lr_and_state in (0.1, None), (0.1, 0.1):  # the other way round
        with pytest.raises(TypeError, match="expected the AdamState of init_adam, got (NoneType|float)"):
            adam_step(w, d, *reversed(lr_and_state))
    with pytest.raises(TypeError, match="got None: leave out biases"):
        init_adam([*w, None])
    with pytest.raises(ValueError, match="lr must be finite, got inf"):
        sgd_step(w, d, np.inf)
    assert state.t == 0 and not state.m[0].any() and w[0].tolist() == [1, 1]


def test_memory_that_cannot_change_in_place_is_refused():
    w = [np.ones((3, 2)).T]
    with pytest.raises(ValueError, match="C-contiguous"):
        adam_step(w, [np.ones((2, 3))], init_adam([np.ones((2, 3))]), 0.1)
    w = [np.ones((2, 3))]
    with pytest.raises(ValueError, match=r"shape \(2, 3\) needs an update"):
        adam_step(w, [np.ones((3, 2))], init_adam(w), 0.1)
    with pytest.raises(ValueError, match="needs an update"):
        sgd_step(w, [np.ones(3)], 0.1)
    with pytest.raises(ValueError):
        sgd_step([np.ones(2)], [np.ones(2), np.ones(2)], 0.1)


@pytest.mark.parametrize("shape", [(), (1,), (4, 3), (2, 1, 3, 2), (0, 2)])
def test_adam_takes_any_shape(shape):
    rng = np.random.default_rng(0)
    w, d = np.asarray(rng.normal(size=shape)), np.asarray(rng.normal(size=shape))
    flat, state, flat_state = [w.ravel().copy()], init_adam([w]), init_adam([w.ravel()])
    adam_step([w], [d], state, 0.1)
    adam_step(flat, [d.ravel()], flat_state, 0.1)
    assert np.array_equal(w.ravel(), flat[0]) and np.array_equal(state.v[0].ravel(), flat_state.v[0])


def test_adam_wants_an_update_and_moments_for_every_parameter():
    def state(m, v):
        return AdamState([np.zeros(s) for s in m], [np.zeros(s) for s in v])

    w, d = [np.ones((2, 3)), np.ones(2)], [np.ones((2, 3)), np.ones(2)]
    shapes = [(2, 3), (2,)]
    for bad in (state([(3, 2), (2,)], shapes), state(shapes, [(3, 2), (2,)])):
        with pytest.raises(ValueError, match=r"needs an update and moments of that shape, got .*\(3, 2\)"):
            adam_step(w, d, bad, 0.1)
    for bad in (state(shapes[:1], shapes), state(shapes, shapes[:1])):
        with pytest.raises(ValueError, match=r"for each of 2 parameters, got \[2, .*1"):
            adam_step(w, d, bad, 0.1)
    with pytest.raises(ValueError, match=r"for each of 2 parameters, got \[1, 2, 2"):
        adam_step(w, d[:1], state(shapes, shapes), 0.1)


@pytest.mark.parametrize("spoil", ["shape", "number", "readonly", "layout"])
def test_nothing_has_changed_where_a_later_parameter_does_not_fit(spoil):
    w, d = [np.ones(3), np.ones((2, 4))], [np.ones(3), np.ones((2, 4))]
    state = init_adam(w)
    match spoil:
        case "shape":
            d[1] = np.ones((4, 2))
        case "number":
            d.pop()
        case "readonly":
            w[1].flags.writeable = False
        case "layout":
            w[1] = np.asfortranarray(w[1])
    for step in (lambda: adam_step(w, d, state, 0.1), lambda: sgd_step(w, d, 0.1)):
        with pytest.raises(ValueError):
            step()
    for name in ("m", "v"):
        spoilt = replace(init_adam([np.ones(3), np.ones((2, 4))]), **{name: [np.zeros(3), np.zeros((4, 2)).T]})
        with pytest.raises(ValueError, match="C-contiguous and writable"):
            adam_step([np.ones(3), np.ones((2, 4))], [np.ones(3), np.ones((2, 4))], spoilt, 0.1)
        assert spoilt.t == 0
    assert state.t == 0 and not state.m[0].any() and (w[0] == 1).all()


@pytest.mark.parametrize("second", [dict(p=np.ones(3, dtype=int)), dict(p=np.ones(3, dtype="f2")), dict(d=np.ones(3, dtype=complex)),
                                    dict(d=None)], ids=str)
def test_nothing_has_changed_where_a_later_dtype_does_not_fit(second):
    w, d = [np.ones(3), second.get("p", np.ones(3))], [np.ones(3), second.get("d", np.ones(3))]
    state = init_adam(w)
    for step in (lambda: adam_step(w, d, state, 0.1), lambda: sgd_step(w, d, 0.1)):
        with pytest.raises(TypeError, match="float32 or wider|got None"):
            step()
    assert state.t == 0 and not state.m[0].any() and (w[0] == 1).all()
    for name in ("m", "v"):
        spoilt = replace(init_adam(w), **{name: [np.zeros(3, np.float32)] * 2})
        with pytest.raises(TypeError, match="share a dtype, float32 or wider"):
            adam_step([np.ones(3)] * 2, [np.ones(3)] * 2, spoilt, 0.1)


def test_a_rate_beyond_floating_point_numbers():
    w = [np.ones(3)]
    for step in (lambda lr: sgd_step(w, w, lr)), (lambda lr: adam_step(w, w, init_adam(w), lr)):
        for lr in 10**400, float("inf"), float("nan"):
            with pytest.raises(ValueError, match="lr must be finite, got"):
                step(lr)
    assert (w[0] == 1).all()


def test_a_numpy_rate_is_the_same_as_pythons():
    """As an array of no dimensions it would make float32 products float64 ones."""
    for step in (sgd_step, lambda w, d, lr: adam_step(w, d, init_adam(w), lr)):
        rng = np.random.default_rng(0)
        w, d = ([rng.normal(size=50).astype("float32")] for _ in range(2))
        results = []
        for lr in (0.1, np.float64(0.1)):
            results.append(w[0].copy())
            step([results[-1]], d, lr)
        assert np.array_equal(*results) and not np.array_equal(results[0], w[0])


@pytest.mark.parametrize("dtype, of_updates", [("float32", "float32"), ("float64", "float64"), ("float32", "float64"),
                                               ("float64", "float16"), ("float32", "int8")])
def test_a_device_steps_as_a_cpu_does(device, monkeypatch, dtype, of_updates):
    """Of parameters more than one launch takes, and of one that is larger than there are threads."""
    monkeypatch.setattr(kernels, "FULL", 512)
    rng, eps = np.random.default_rng(0), np.finfo(dtype).eps
    shapes = [(3, 5), (60, 50), (1,), *[(2, 2)] * 197]
    start = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    updates = [[(3 * rng.normal(size=shape[::-1])).astype(of_updates).T for shape in shapes] for _ in range(3)]  # not contiguous
    for step in (sgd_step, lambda p, d, lr: adam_step(p, d, state, lr), lambda p, d, lr: adam_step(p, d, state, lr, eps_hat=True, eps=0.1)):
        found = []
        for xp in np, device:
            p = [xp.asarray(w.copy()) for w in start]
            state = init_adam(p)
            for d in updates:
                step(p, [xp.asarray(np.ascontiguousarray(a.T)).T for a in d], 0.125)
            found.append([[to_host(a) for a in arrays] for arrays in (p, state.m, state.v)])
        for name, here, there in zip("pmv", *found, strict=True):
            for i, (a, b, w) in enumerate(zip(here, there, start, strict=True)):
                largest = max(np.abs(d[i].astype(float)).max() for d in updates)
                scale = {"p": max(np.abs(a).max(), np.abs(w).max()), "m": 0.3 * largest, "v": np.abs(a).max()}[name]  # m may cancel
                assert a.dtype == b.dtype == dtype and not np.array_equal(a, w)
                assert np.abs(a - b).max() <= 8 * eps * scale, name


def test_updates_in_float64_are_not_rounded_before_their_rate_on_a_device(device):
    """Of weights in float32, which could not hold them: 1e300 times 1e-300, 1e50 times 2^-53, and (1e25)^2 times 2^-53."""
    p, d = [device.asarray(np.zeros(1, "float32"))], [device.asarray(np.array([1e300]))]
    sgd_step(p, d, 1e-300)
    assert to_host(p[0]).tolist() == [-1]
    for d, name in (1e50, "m"), (1e25, "v"):
        state = init_adam(p)
        adam_step(p, [device.asarray(np.array([d]))], state, 1.0, beta1=1 - 2**-53, beta2=1 - 2**-53)
        assert to_host(getattr(state, name)[0]).tolist() == [np.float32(1e50 * 2**-53)]


def test_arrays_of_two_backends_are_refused_before_anything_changes(fake_cupy):
    w, other = [np.ones(3)], [fake_cupy.asarray(np.ones(3))]
    state = init_adam(w)
    for pair in ((w, other), (other, w)):
        with pytest.raises(TypeError, match="mixed"):
            adam_step(*pair, state, 0.1)
    assert state.t == 0

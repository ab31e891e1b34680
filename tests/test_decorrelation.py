import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import assert_close, random_params

from npref import Dense, Network, equations, forward, init_params, mean_squared_correlation, update_decorrelation
from npref.decorrelation import OvershootWarning, decorrelation_step, moment_is_cheaper, overshoot_limit, warn_of_overshoot


@given(seed=st.integers(0, 2**32 - 1))
def test_update_is_the_equation(seed):
    rng = np.random.default_rng(seed)
    M, n = rng.integers(1, 6, 2)
    x, R, alpha = rng.normal(size=(M, n)), rng.normal(size=(n, n)), 0.1
    expected = equations.decorrelation_update(R, [row[:, None] for row in x], alpha)
    scale = np.abs(R) + alpha * np.abs(x.T) @ np.abs(x) @ np.abs(R) / M
    updated = R.copy()
    update_decorrelation(updated, x, alpha)
    assert_close(updated, expected, scale)


@given(seed=st.integers(0, 2**32 - 1))
def test_the_update_after_a_pass_is_the_equation(seed):
    """From x* where the pass has it, from x where it was left out; a layer without R is passed over."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 4)
    network = Network((int(sizes[0]),), tuple(Dense(int(n)) for n in sizes[1:]))
    params, x = random_params(rng, network), rng.normal(size=(int(rng.integers(1, 30)), sizes[0]))
    params = replace(params, R=(params.R[0], None, params.R[2]))
    full, trace = forward(network, params, x), forward(network, params, x, sparing=True)
    Rs = [None if R is None else R.copy() for R in params.R]
    decorrelation_step(Rs, trace, 0.1)
    assert Rs[1] is None
    for l in (0, 2):
        R, x_l, size = params.R[l], full.x_star[l], np.abs(x if l == 0 else full.x[1]) @ np.abs(params.R[l].T)
        expected = equations.decorrelation_update(R, [row[:, None] for row in x_l], 0.1)
        assert_close(Rs[l], expected, np.abs(R) + 0.1 * size.T @ size @ np.abs(R) / len(x) + 1e-3)


@pytest.mark.parametrize("strip", [1, 3, 7, 20])
def test_strips_of_R_do_not_show(strip, monkeypatch):
    rng = np.random.default_rng(3)
    x, R = rng.normal(size=(4, 7)), rng.normal(size=(7, 7))
    expected = equations.decorrelation_update(R, [row[:, None] for row in x], 0.1)
    monkeypatch.setattr("npref.decorrelation.STRIP", strip)
    monkeypatch.setattr("npref.execution.CACHE_BLOCK", 14)
    update_decorrelation(R, x, 0.1)
    assert_close(R, expected, 10)


def test_the_cheaper_form():
    """M n² / 2 + n³ against 2 M n²: equal at n = 1.5 M."""
    for M, n in ((2, 3), (10, 15), (10, 14), (1000, 1024)):
        assert moment_is_cheaper(M, n) and M * n**2 / 2 + n**3 <= 2 * M * n**2
    for M, n in ((1, 2), (10, 16), (1000, 3072)):
        assert not moment_is_cheaper(M, n) and M * n**2 / 2 + n**3 > 2 * M * n**2


def test_columns_of_a_convolution_count_as_samples():
    rng = np.random.default_rng(0)
    columns, R = rng.normal(size=(3, 5)), np.eye(3)
    one_by_one = equations.decorrelation_update(R, [columns[:, i : i + 1] for i in range(5)], 0.1)
    assert np.allclose(equations.decorrelation_update(R, [columns], 0.1), one_by_one, rtol=1e-14)


def test_correlations_fall_to_nothing():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 1
    x /= np.sqrt(np.mean(np.sum(x**2, axis=1)))
    R, measured = np.eye(6), []
    for _ in range(2000):
        x_star = x @ R.T
        measured.append(float(mean_squared_correlation(x_star)))
        update_decorrelation(R, x_star, 0.5)
    assert measured[0] > 0.1 and measured[-1] < 1e-4
    moment = (x @ R.T).T @ (x @ R.T) / 500
    assert np.all(np.diag(moment) > 0)


@pytest.mark.parametrize("n", [6, 15, 28])
def test_where_the_update_overshoots(n):
    """Beyond the limit what inputs have in common grows with every update."""
    x = np.random.default_rng(n).normal(size=(200, n)) + 1
    limit = overshoot_limit(x)
    for alpha, stays in ((0.95 * limit, True), (1.05 * limit, False)):
        R = np.eye(n)
        with np.errstate(all="ignore"):
            for _ in range(60):
                update_decorrelation(R, x @ R.T, alpha)
        assert (abs(R).max() < 2) == stays


@given(seed=st.integers(0, 2**32 - 1))
def test_the_limit_is_two_over_the_largest_eigenvalue(seed):
    """Of the moment without its diagonal, be its most negative eigenvalue larger or not; from above, and close where it matters."""
    rng = np.random.default_rng(seed)
    M, n = rng.integers(2, 40, 2)
    common = rng.choice([0, 1, 10])
    x = rng.normal(size=(M, n)) + common * rng.choice([-1, 1], n)
    moment = x.T @ x / M
    limit = 2 / np.linalg.eigvalsh(moment - np.diag(np.diag(moment)))[-1]
    assert overshoot_limit(x, iterations=3000) == pytest.approx(limit, rel=1e-2)
    assert overshoot_limit(x) >= limit * (1 - 1e-9) and (common < 10 or overshoot_limit(x) == pytest.approx(limit))


def test_the_limit_where_the_most_negative_eigenvalue_is_the_larger():
    """Five inputs whose sum is 0: the moment is -4 off the diagonal, with eigenvalues 4 and -16."""
    assert overshoot_limit(10 * (np.eye(5) - 1 / 5)) == pytest.approx(2 / 4)


def test_inputs_without_correlation_have_no_limit():
    assert overshoot_limit(np.eye(4)) == overshoot_limit(np.ones((3, 1))) == overshoot_limit(np.zeros((3, 2))) == np.inf


@pytest.mark.parametrize("size", [1e200, np.inf, np.nan])
def test_the_limit_of_what_overflows_is_left_to_the_step(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert overshoot_limit(np.full((4, 3), size)) == np.inf


@pytest.mark.parametrize("factor, warns", [(0.9, False), (1.1, True)])
def test_the_warning_names_the_layer_and_the_limit(factor, warns):
    network = Network((5,), (Dense(7), Dense(2, activation="identity")))
    params = init_params(network, dtype="float64", decorrelate=True)
    params.W[0][:] = 9
    trace = forward(network, params, np.random.default_rng(0).random((20, 5)))
    limit = overshoot_limit(trace.x_star[1])
    assert limit < overshoot_limit(trace.x_star[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_overshoot(factor * limit, trace)
    assert [w.category for w in caught] == [OvershootWarning] * warns
    if warns:
        assert f"inputs of layer 2 as this run starts: beyond {limit:.2g} " in str(caught[0].message)


@pytest.mark.parametrize("M, n", [(50, 4), (4, 50)])
def test_measure_by_hand(M, n):
    x = np.random.default_rng(2).normal(size=(M, n)) + 0.5
    x[:, 1] = 0  # a dead input
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j and 1 not in (i, j):
                total += (x[:, i] @ x[:, j]) ** 2 / ((x[:, i] @ x[:, i]) * (x[:, j] @ x[:, j]))
    assert np.isclose(float(mean_squared_correlation(x)), total / (n * (n - 1)), rtol=1e-10)


def test_measure_at_its_ends():
    assert float(mean_squared_correlation(np.outer(np.arange(1, 5.0), [1, -2, 3]))) == pytest.approx(1)
    assert float(mean_squared_correlation(np.eye(4))) == pytest.approx(0, abs=1e-15)
    assert float(mean_squared_correlation(np.ones((4, 1)))) == 0


def test_measure_of_more_inputs_than_rows_is_not_below_nothing():
    """Three inputs at right angles and two dead ones, in any position: what rounding leaves of 0 may not be negative."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        x = np.zeros((4, 5))
        x[:, rng.permutation(5)[:3]] = np.linalg.qr(rng.normal(size=(4, 4)))[0][:, :3]
        assert 0 <= float(mean_squared_correlation(x)) < 1e-14


def test_measure_of_independent_inputs_is_one_over_M():
    """Its floor, as the docstring says: 200 x 199 / 2 pairs, so the mean is sharp to a percent or two."""
    for M in (20, 500):
        x = np.random.default_rng(M).normal(size=(M, 200))
        assert float(mean_squared_correlation(x)) == pytest.approx(1 / M, rel=0.1)


def test_little_correlation_in_many_rows_is_not_rounded_away():
    x = np.random.default_rng(0).normal(size=(200_000, 9))
    exact = float(mean_squared_correlation(x))
    assert exact < 1e-5 and float(mean_squared_correlation(x.astype(np.float32))) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("M", [5, 9])
def test_either_way_of_computing_the_update_is_the_equation(M):
    """Fewer rows than inputs and more: two forms of one rule, at the shapes where they meet."""
    rng = np.random.default_rng(M)
    x, R = rng.normal(size=(M, 7)), rng.normal(size=(7, 7))
    expected = equations.decorrelation_update(R, [row[:, None] for row in x], 0.3)
    scale = np.abs(R) + 0.3 * np.abs(x.T) @ np.abs(x) @ np.abs(R) / M
    update_decorrelation(R, x, 0.3)
    assert_close(R, expected, scale)


@pytest.mark.parametrize("M", [3, 20, 99])
def test_a_numpy_alpha_is_the_same_as_pythons(M):
    """In all three forms; as an array of no dimensions it would make float32 products float64 ones."""
    network, rng = Network((9,), (Dense(2),)), np.random.default_rng(0)
    params = init_params(network, decorrelate=True)
    trace = forward(network, params, rng.normal(size=(M, 9)).astype("float32"), sparing=True)
    assert (trace.x_star[0] is None) == (M == 99) and moment_is_cheaper(M, 9) == (M > 3)
    results = [params.R[0].copy(), params.R[0].copy()]
    for R, alpha in zip(results, (0.1, np.float64(0.1))):
        decorrelation_step([R], trace, alpha)
        decorrelation_step([R], trace, alpha)
    assert np.array_equal(*results) and not np.array_equal(results[0], np.eye(9))


def test_a_pass_that_does_not_fit():
    network = Network((3,), (Dense(2), Dense(2)))
    params = init_params(network, decorrelate=True)
    trace = forward(network, params, np.ones((99, 3), dtype=np.float32), sparing=True)
    assert trace.x_star == [None, None]
    with pytest.raises(ValueError, match="each of 2 layers, got 1"):
        decorrelation_step(params.R[:1], trace, 0.1)
    with pytest.raises(TypeError, match="share one dtype, float32 or wider, got float64 and float32"):
        decorrelation_step([params.R[0], params.R[1].astype(np.float64)], trace, 0.1)
    with pytest.raises(ValueError, match="n_in"):
        decorrelation_step([params.R[0], params.R[0]], trace, 0.1)
    assert all(np.array_equal(R, np.eye(len(R))) for R in params.R)


def test_nothing_changes_before_all_fits():
    network = Network((3,), (Dense(4), Dense(2)))
    params = init_params(network, decorrelate=True, dtype="float64")
    trace = forward(network, params, np.random.default_rng(0).normal(size=(5, 3)))
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        decorrelation_step(params.R, trace, np.nan)
    with pytest.raises(TypeError, match="expected a list of R .or None., one a layer, got Params; a Params has them as params.R"):
        decorrelation_step(params, trace, 0.1)
    with pytest.raises(TypeError, match="expected an update's trace, got tuple"):
        decorrelation_step(params.R, (trace,), 0.1)
    params.R[1].flags.writeable = False
    with pytest.raises(ValueError, match="R must be writable, as it changes in place: copy it"):
        decorrelation_step(params.R, trace, 0.1)
    assert all(np.array_equal(R, np.eye(len(R))) for R in params.R)


def test_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match="n_in"):
        update_decorrelation(np.eye(3), np.ones((5, 4)), 0.1)
    with pytest.raises(ValueError, match="at least one row"):
        update_decorrelation(np.eye(3), np.ones((0, 3)), 0.1)
    for R, x in ((np.eye(3), np.ones((5, 3), dtype=np.uint8)), (np.eye(3, dtype=int), np.ones((5, 3), dtype=int)),
                 (np.eye(3, dtype=np.float32), np.ones((5, 3))), (np.eye(3, dtype=np.float16), np.ones((5, 3), dtype=np.float16))):
        with pytest.raises(TypeError, match="share one dtype, float32 or wider"):
            update_decorrelation(R, x, 0.1)
    for measure in mean_squared_correlation, overshoot_limit:
        with pytest.raises(TypeError, match=r"leaves it out of a layer with many rows: forward\(network, params, x\).x_star has all"):
            measure(None)
    with pytest.raises(TypeError, match=r"leaves it out .* use decorrelation_step\(params.R, trace, alpha\)"):
        update_decorrelation(np.eye(3), None, 0.1)
    with pytest.raises(TypeError, match="R is None"):
        update_decorrelation(None, np.ones((5, 3)), 0.1)
    for M in (1, 5):  # in either form
        R = np.eye(3)
        with pytest.raises(ValueError, match="alpha must be finite, got nan"):
            update_decorrelation(R, np.ones((M, 3)), np.nan)
        assert np.array_equal(R, np.eye(3))


@given(seed=st.integers(0, 2**32 - 1))
def test_measure_does_not_depend_on_the_scale_of_an_input(seed):
    """Nor overflow or vanish: scales of 10^±200, whose squares no float64 holds."""
    rng = np.random.default_rng(seed)
    M, n = rng.integers(2, 6, 2)
    x = rng.normal(size=(M, n))
    scaled = float(mean_squared_correlation(x * 10.0 ** rng.uniform(-200, 200, n)))
    assert_close(scaled, float(mean_squared_correlation(x)), 10)


def test_measure_of_two_inputs_is_their_squared_cosine():
    assert float(mean_squared_correlation(np.array([[1.0, 1], [1, 0]]))) == pytest.approx(0.5)


def test_measure_is_a_float64_for_any_number_of_inputs():
    for n in (1, 3):
        assert mean_squared_correlation(np.ones((4, n), dtype=np.float32)).dtype == np.float64


@pytest.mark.parametrize("measure", [mean_squared_correlation, overshoot_limit])
def test_inputs_that_cannot_be_measured(measure):
    for dtype in ("float16", "complex128", "int64"):
        with pytest.raises(TypeError, match=f"expected inputs in float32 or wider, got {dtype}"):
            measure(np.ones((5, 3), dtype=dtype))
    for shape in ((3,), (0, 3), (5, 3, 1)):
        with pytest.raises(ValueError, match="at least one row of inputs"):
            measure(np.ones(shape))


def test_arrays_of_two_backends_are_refused(fake_cupy):
    R, x = np.eye(3), np.ones((5, 3))
    for pair in ((R, fake_cupy.asarray(x)), (fake_cupy.asarray(R), x)):
        with pytest.raises(TypeError, match="mixed"):
            update_decorrelation(*pair, 0.1)

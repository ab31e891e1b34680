"""The arm against mechanics that do not know the Newton-Euler recursion: where its masses are, by SciPy's rotations, and Lagrange."""

import numpy as np
from scipy.spatial.transform import Rotation

from npref import datasets
from npref.datasets import robot

STEP = 1e-5


def jacobians(q):
    """Of one posture q (7,): each link's centre (7, 3), the velocity and angular velocity that each joint gives it (7, 3, 7), turns."""
    turn, origin, axes, origins, centres, turns = Rotation.identity(), np.zeros(3), [], [], [], []
    for i in range(7):
        axes.append(turn.apply(robot.AXES[i]))
        origins.append(origin)
        turn = turn * Rotation.from_rotvec(robot.AXES[i] * q[i])
        centres.append(origin + turn.apply([0, 0, -robot.LENGTHS[i] / 2]))
        turns.append(turn.as_matrix())
        origin = origin + turn.apply([0, 0, -robot.LENGTHS[i]])
    linear, angular = np.zeros((7, 3, 7)), np.zeros((7, 3, 7))
    for i in range(7):
        for j in range(i + 1):
            linear[i, :, j], angular[i, :, j] = np.cross(axes[j], centres[i] - origins[j]), axes[j]
    return np.array(centres), linear, angular, turns


def mass_matrix(q):
    """M in the kinetic energy vᵀ M v / 2; the links are solid cylinders along z."""
    M = np.zeros((7, 7))
    _, linear, angular, turns = jacobians(q)
    for m, r, length, J, A, turn in zip(robot.MASSES, robot.RADII, robot.LENGTHS, linear, angular, turns):
        across = m * (r**2 / 4 + length**2 / 12)
        M += m * J.T @ J + A.T @ turn @ np.diag([across, across, m * r**2 / 2]) @ turn.T @ A
    return M


def potential(q):
    return 9.81 * np.sum(robot.MASSES * jacobians(q)[0][:, 2])


def energy(q, v):
    return v @ mass_matrix(q) @ v / 2 + potential(q)


def gradient(f, q):
    """df/dq_i by central differences, along a new last axis."""
    return np.stack([(f(q + STEP * e) - f(q - STEP * e)) / (2 * STEP) for e in np.eye(7)], axis=-1)


def postures(n=5):
    return np.random.default_rng(3).normal(size=(3, n, 7))


def test_gravity_is_the_gradient_of_the_potential():
    q, _, _ = postures()
    still = np.zeros(7)
    for posture in q:
        assert np.allclose(robot.torques(posture, still, still), gradient(potential, posture), atol=1e-7)
    assert np.allclose(robot.torques(still, still, still), 0, atol=1e-12)  # it hangs
    lifted = np.array([np.pi / 2, 0, 0, 0, 0, 0, 0])  # and level: every mass pulls at its distance
    distance = np.cumsum(robot.LENGTHS) - robot.LENGTHS / 2
    assert np.isclose(abs(robot.torques(lifted, still, still)[0]), 9.81 * robot.MASSES @ distance)


def test_lagrange():
    """τ = M a + Ṁ v - ∂(vᵀ M v / 2)/∂q + ∂V/∂q."""
    for q, v, a in zip(*postures()):
        dM = gradient(mass_matrix, q)  # (7, 7, 7)
        expected = mass_matrix(q) @ a + (dM @ v) @ v - np.einsum("i,ijk,j->k", v, dM, v) / 2 + gradient(potential, q)
        assert np.allclose(robot.torques(q, v, a), expected, atol=1e-7)
    M = mass_matrix(postures()[0][0])
    assert np.linalg.eigvalsh(M).min() > 0 and np.allclose(M, M.T)


def test_power_is_the_change_of_energy():
    """Along the trajectories themselves; so positions, velocities, accelerations and torques fit each other."""
    q, v, a = robot.trajectories(3, 4001, interval=STEP)
    torques = robot.torques(q, v, a)
    for k in range(3):
        for now in (1, 2000, 3999):
            change = (energy(q[k, now + 1], v[k, now + 1]) - energy(q[k, now - 1], v[k, now - 1])) / (2 * STEP)
            power = torques[k, now] @ v[k, now]
            assert abs(power - change) < 1e-6 * np.sum(np.abs(torques[k, now] * v[k, now])) + 1e-7


def test_trajectories():
    q, v, a = robot.trajectories(2, 1001, interval=1e-4)
    assert np.allclose((q[:, 2:] - q[:, :-2]) / 2e-4, v[:, 1:-1], atol=1e-5)
    assert np.allclose((v[:, 2:] - v[:, :-2]) / 2e-4, a[:, 1:-1], atol=1e-4)
    q, v, a = robot.trajectories(50, 200)
    assert np.allclose(q.mean(axis=(0, 1)), robot.MIDDLE, atol=0.1) and np.allclose(q.std(axis=(0, 1)), robot.REACH, rtol=0.2)
    assert np.abs(q).max() < np.pi and 0.3 < v.std() < 3 and 1 < a.std() < 10
    assert np.array_equal(robot.trajectories(50, 200)[2], a) and not np.allclose(q[0], q[1])


def test_synthetic_sarcos():
    data = datasets.load("synthetic-sarcos")
    assert data.x_train.shape == (8000, 21) and data.y_train.shape == (8000, 7) and data.x_test.shape == (2000, 21)
    assert data.x_train.dtype == data.y_train.dtype == np.float64 and data.regression and (data.classes, data.inputs) == (7, "raw")
    assert data.completeness == "8000 + 2000" and data.name == "synthetic-sarcos"
    small = datasets.load("synthetic-sarcos", limit_train=90, limit_test=30)
    assert np.array_equal(small.x_train, data.x_train[:90]) and np.array_equal(small.y_test, data.y_test[:30])
    q, v, a = robot.trajectories(100, 2)
    assert np.array_equal(data.x_train[[0, 1, 80]], [[*q[k, t], *v[k, t], *a[k, t]] for k, t in ((0, 0), (1, 0), (0, 1))])
    assert np.array_equal(data.x_test[20], [*q[80, 1], *v[80, 1], *a[80, 1]])
    assert not {row.tobytes() for row in data.x_train} & {row.tobytes() for row in data.x_test}
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        residual = y - robot.torques(*np.split(x, 3, axis=1))
        assert np.allclose(residual.std(axis=0) / data.y_train.std(axis=0), 0.01, rtol=0.05)
    expected = [-0.30511255580810415, 0.03166969722896698, -0.3112385011935208, 3.4413561192832853]  # recorded runs saw these
    assert np.allclose(data.x_train[1, [0, 6, 13, 20]], expected, rtol=1e-9, atol=0)
    expected = [-7.605604308080771, 7.35210593305701, 1.153598698961209, -4.171273219931381, 0.022237651767138402, -0.42478643812329087,
                -0.09329449947542941]
    assert np.allclose(data.y_train[1], expected, rtol=1e-9, atol=1e-9)
    correlations = np.corrcoef(data.x_train.T)
    joints = correlations[:7, :7][np.triu_indices(7, 1)]
    assert joints.min() > 0.1 and np.all(np.diag(correlations[:7, 14:]) < -0.2)  # joints move together, accelerations oppose positions
    with np.testing.assert_raises_regex(ValueError, "limit_train must be between 1 and 8000, the size of synthetic-sarcos, got 9000"):
        datasets.load("synthetic-sarcos", limit_train=9000)

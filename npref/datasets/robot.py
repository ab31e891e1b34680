"""Inverse dynamics of a seven-joint arm, by the recursive Newton-Euler algorithm (Luh, Walker & Paul 1980), in plain NumPy.

An arm of human size that hangs along -z when all joints are at 0: shoulder (y, x, z), elbow (y), wrist (z, y, x). It is not SARCOS's
arm, whose masses nobody has published. Every array has the joint, then a vector's three components, as its last axes;
leading axes are samples. SI units.
"""

from math import pi

import numpy as np

from .. import noise

AXES = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=float)  # of joint i, in link i
LENGTHS = np.array([0.04, 0.04, 0.30, 0.03, 0.26, 0.03, 0.15])  # of links, each along its -z; m
RADII = np.array([0.05, 0.05, 0.045, 0.04, 0.035, 0.03, 0.03])  # m
MASSES = np.array([1.2, 1.0, 2.2, 0.6, 1.3, 0.3, 0.5])  # kg; solid cylinders
GRAVITY = np.array([0.0, 0.0, -9.81])  # m/s²
JOINTS = LENGTHS[:, None] * [0.0, 0.0, -1.0]  # from joint i to joint i + 1, in link i
CENTRES = JOINTS / 2  # from joint i to link i's centre of mass, in link i
INERTIAS = np.stack([MASSES * (3 * RADII**2 + LENGTHS**2) / 12] * 2 + [MASSES * RADII**2 / 2], axis=-1)  # (7, 3), diagonal

MIDDLE = np.array([-0.3, 0.2, 0.1, -1.2, 0.1, 0.1, 0.0])  # of each joint's motion; rad
REACH = np.array([0.30, 0.22, 0.25, 0.35, 0.40, 0.35, 0.35])  # standard deviation of each joint's motion; rad
WAVES = 5  # sinusoids a joint


def torques(q, v, a):
    """Of joints at positions q with velocities v and accelerations a, each (..., 7): (..., 7)."""
    turns = [_turn(AXES[i], q[..., i]) for i in range(7)]  # from link i's frame to link i - 1's
    base = np.zeros((*q.shape[:-1], 3))
    omega, alpha, acceleration, at = base, base, base - GRAVITY, np.zeros(3)  # a base that falls upward stands for gravity
    forces, moments = [], []
    for i in range(7):  # outward: how every link moves
        acceleration = acceleration + np.cross(alpha, at) + np.cross(omega, np.cross(omega, at))  # of joint i
        omega, alpha, acceleration = (_apply(turns[i].swapaxes(-1, -2), u) for u in (omega, alpha, acceleration))
        spin = AXES[i] * v[..., i, None]
        alpha = alpha + np.cross(omega, spin) + AXES[i] * a[..., i, None]
        omega = omega + spin
        centre = acceleration + np.cross(alpha, CENTRES[i]) + np.cross(omega, np.cross(omega, CENTRES[i]))
        forces.append(MASSES[i] * centre)
        moments.append(INERTIAS[i] * alpha + np.cross(omega, INERTIAS[i] * omega))
        at = JOINTS[i]
    result, force, moment = np.empty_like(q), base, base
    for i in reversed(range(7)):  # inward: what joint i passes on. force and moment come in from link i + 1, in link i's frame
        moment = moments[i] + np.cross(CENTRES[i], forces[i]) + moment + np.cross(JOINTS[i], force)
        force = forces[i] + force
        result[..., i] = moment @ AXES[i]
        force, moment = _apply(turns[i], force), _apply(turns[i], moment)
    return result


def _turn(axis, angle):
    """Rotation by `angle` (...) about a unit axis, (..., 3, 3): 1 + sin K + (1 - cos) K²."""
    x, y, z = axis
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle)[..., None, None] * K + (1 - np.cos(angle))[..., None, None] * (K @ K)


def _apply(turn, u):
    return np.einsum("...ij,...j->...i", turn, u)


def trajectories(n, times, interval=0.1):
    """Smooth motions: positions, velocities and accelerations, each (n, times, 7), that are each other's derivatives.

    q_i(t) = middle_i + Σ_w amplitude sin(2π f_w t + phase). The joints of a trajectory share its frequencies, 0.1 to 1 Hz, of
    which faster ones are smaller; amplitudes are their own, and phases lie within half a turn, so joints tend to move together.
    interval: between samples, s.
    """
    count = 2 + 2 * 7  # of numbers a wave
    numbers = noise.words(0, noise.IMAGES, (0, 0, 0, 4), -(-n * WAVES * count // 4))[: n * WAVES * count]
    uniform = (numbers >> np.uint64(11)).reshape(n, 1, WAVES, count) * 2.0**-53  # in [0, 1)
    frequency = 0.1 * 10 ** uniform[..., :1]
    amplitude = (0.2 + uniform[..., 2:9]) / frequency
    amplitude *= REACH * np.sqrt(2 / np.sum(amplitude**2, axis=2, keepdims=True))
    rate = 2 * pi * frequency
    angle = rate * (interval * np.arange(times))[:, None, None] + 2 * pi * (uniform[..., 1:2] + uniform[..., 9:] / 2)
    q = MIDDLE + np.sum(amplitude * np.sin(angle), axis=2)
    return q, np.sum(amplitude * rate * np.cos(angle), axis=2), np.sum(-amplitude * rate**2 * np.sin(angle), axis=2)

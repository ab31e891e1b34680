"""Data sets that need no download: deterministic, made in a second or two, and alike in kind to those of the paper."""

import numpy as np

from .. import noise
from . import robot
from .dataset import Dataset, check_limit

PATTERN_STRENGTH = 0.15  # of the class pattern, in standard deviations of the noise, per pixel before colouring


def synthetic(n_train=8_000, n_test=2_000, *, limit_train=None, limit_test=None, why=""):
    """Ten classes of 3x32x32 images that need no download: deterministic, and correlated like natural images.

    Each image is white noise plus its class's fixed white pattern, coloured by a 1/f amplitude spectrum and mixed over the
    three channels. So neighbouring pixels agree and the classes differ mostly in directions of little variance: a
    learner that decorrelates its input is faster, as on natural images. Mean and contrast are about CIFAR-10's.
    """
    parts = _images("synthetic", 0, 32, 10, n_train, n_test, limit_train, limit_test)
    return Dataset("synthetic", "synthetic images with 1/f correlations" + why, *parts, classes=10)


def synthetic_cifar100(*, limit_train=None, limit_test=None):
    """`synthetic` with 100 classes: 8,000 + 2,000 images."""
    parts = _images("synthetic-cifar100", 1, 32, 100, 8_000, 2_000, limit_train, limit_test)
    return Dataset("synthetic-cifar100", "synthetic images with 1/f correlations in 100 classes", *parts, classes=100)


def synthetic_tiny_imagenet(*, limit_train=None, limit_test=None):
    """`synthetic` with 200 classes of 3x64x64 images: 4,000 + 1,000 of them."""
    parts = _images("synthetic-tiny-imagenet", 2, 64, 200, 4_000, 1_000, limit_train, limit_test)
    return Dataset("synthetic-tiny-imagenet", "synthetic 64x64 images with 1/f correlations in 200 classes", *parts, classes=200,
                   inputs="standard")


def synthetic_sarcos(*, limit_train=None, limit_test=None):
    """The inverse dynamics of a made-up arm like SARCOS's (robot.py): 8,000 + 2,000 samples, from 80 + 20 trajectories.

    Features (n, 21): positions, velocities and accelerations of seven joints, rad, rad/s, rad/s². Targets (n, 7): their torques, N m, with
    Gaussian noise of 1% of each joint's standard deviation. Samples go round the trajectories; those of the test are others.
    """
    n = (8_000, 2_000)
    for what, limit, most in (("limit_train", limit_train, n[0]), ("limit_test", limit_test, n[1])):
        check_limit(what, limit, most, "synthetic-sarcos")
    q, v, a = robot.trajectories(100, 100)  # each (trajectory, time, joint)
    torques = robot.torques(q, v, a)
    scale = 0.01 * torques[:80].std(axis=(0, 1))
    torques += scale * _normals((7,), range(10_000), step=3, dtype=np.float64).reshape(torques.shape)
    features = np.concatenate([q, v, a], axis=-1)
    train, test = (tuple(np.ascontiguousarray(array[part].transpose(1, 0, 2)).reshape(-1, array.shape[-1])[:limit]
                         for array in (features, torques))
                   for part, limit in ((slice(80), limit_train), (slice(80, None), limit_test)))
    return Dataset("synthetic-sarcos", "inverse dynamics of a simulated seven-joint arm, not SARCOS's", *train, *test, classes=7,
                   inputs="raw")


def _images(name, step, side, classes, n_train, n_test, limit_train, limit_test):
    """x_train, y_train, x_test, y_test. step: which white noise, so that no two sets share it."""
    from scipy.fft import fftfreq, irfft2, rfft2, rfftfreq  # here, as it takes its time to import

    for what, limit, n in (("limit_train", limit_train, n_train), ("limit_test", limit_test, n_test)):
        check_limit(what, limit, n, name)
    patterns = PATTERN_STRENGTH * _normals((3, side, side), range(classes), step, layer=1)
    fy, fx = fftfreq(side)[:, None], rfftfreq(side)[None, :]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / side)  # 1/f, (side, side // 2 + 1)
    amplitude = (amplitude / np.sqrt(np.sum(irfft2(amplitude, s=(side, side)) ** 2))).astype(np.float32)
    mix = np.full((3, 3), 0.55) + 0.2 * np.eye(3)  # channels share most of their signal
    mix = (mix / np.sqrt(np.sum(mix**2, axis=1, keepdims=True))).astype(np.float32)

    def part(first, n):
        labels = np.arange(n) % classes
        images = np.empty((n, 3, side, side), dtype=np.uint8)
        block = 1_024_000 // side**2  # 1000 images of 32x32
        for start in range(0, n, block):
            here = slice(start, min(start + block, n))
            white = _normals((3, side, side), range(first + here.start, first + here.stop), step) + patterns[labels[here]]
            coloured = irfft2(rfft2(white) * amplitude, s=(side, side))  # variance 1, as the rows of mix have length 1
            images[here] = np.clip(np.rint(255 * (0.47 + 0.25 * np.einsum("cd,ndhw->nchw", mix, coloured))), 0, 255)
        return images, labels

    return *part(0, limit_train or n_train), *part(n_train, limit_test or n_test)


def _normals(shape, rows, step, layer=0, dtype=np.float32):
    return noise.draw(np, "gaussian", shape, 1.0, seed=0, step=step, layer=layer, samples=range(1), rows=rows, dtype=dtype,
                      stream=noise.IMAGES)[0]

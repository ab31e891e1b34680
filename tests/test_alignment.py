import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import EPS, assert_close

from npref import to_host
from npref.alignment import angle


@given(seed=st.integers(0, 2**32 - 1), degrees=st.floats(0, 180), shape=st.sampled_from([(2,), (3, 4), (2, 3, 1, 2)]))
def test_a_known_angle_is_found_whatever_the_lengths(seed, degrees, shape):
    """cos θ u + sin θ v for orthonormal u, v lies at θ from u, however long or short the two are."""
    rng = np.random.default_rng(seed)
    u, v = np.linalg.qr(rng.normal(size=(np.prod(shape), 2)))[0].T.reshape(2, *shape)
    turned = np.cos(np.radians(degrees)) * u + np.sin(np.radians(degrees)) * v
    lengths = 10.0 ** rng.uniform(-200, 200, 2)
    assert_close(angle(lengths[0] * turned, lengths[1] * u), degrees, 180)


def test_small_angles_are_not_lost_in_a_cosine():
    assert np.isclose(angle(np.array([1, 1e-12]), np.array([1.0, 0])), np.degrees(1e-12), rtol=4 * EPS, atol=0)


def test_a_zero_update_is_at_right_angles():
    assert angle(np.zeros(3), np.ones(3)) == pytest.approx(90, abs=1e-13)


def test_float32_gives_float64_and_shapes_must_agree():
    assert angle(np.ones(3, np.float32), np.ones(3, np.float32)).dtype == np.float64
    with pytest.raises(ValueError, match="one shape"):
        angle(np.ones((3, 2)), np.ones((2, 3)))


def test_on_the_stand_in(fake_cupy):
    u, v = np.array([[1.0, 2]]), np.array([[2.0, 1]])
    assert to_host(angle(fake_cupy.asarray(u), fake_cupy.asarray(v))) == angle(u, v)

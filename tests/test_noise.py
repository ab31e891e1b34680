import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from npref import noise, to_host

# Random123's known answers for Philox 4x64, 10 rounds: counter, key, block (github DEShawResearch/random123, tests/kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    ((2**64 - 1,) * 4, (2**64 - 1,) * 2, (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)),
    ((0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89), (0x452821E638D01377, 0xBE5466CF34E90C6C),
     (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6)),
]
WHERE = dict(seed=3, step=5, layer=1, samples=range(2), rows=range(6), dtype=np.float64)


def draw(kind="gaussian", shape=(13,), sigma=1.0, **changes):
    return noise.draw(np, kind, shape, sigma, **{**WHERE, **changes})


@pytest.mark.parametrize("counter, key, block", KNOWN)
def test_words_are_philox(counter, key, block):
    assert noise.words(*key, counter, 1).tolist() == list(block)


def signs(xp, key, counter, blocks=1, samples=1):
    """The words that 256 signs a row are, as a device makes no others: (samples * 4 * blocks,) of uint64."""
    (seed, stream), (block, sample, layer, step) = key, counter
    drawn = noise.draw(xp, "rademacher", (256,), 1.0, seed=seed, stream=stream, step=step, layer=layer, dtype=np.float32,
                       samples=range(sample, sample + samples), rows=range(block, block + blocks))
    return np.packbits(to_host(drawn) > 0, bitorder="little").view(np.uint64)


@pytest.mark.parametrize("counter, key, block", KNOWN)
def test_a_device_makes_the_same_words(device, counter, key, block):
    assert signs(device, key, counter).tolist() == list(block)
    counter = (7, *counter[1:])
    expected = noise.words(*key, counter, 1000)
    assert np.array_equal(signs(device, key, counter, 1000), expected) and np.array_equal(signs(np, key, counter, 1000), expected)
    several = signs(device, key, (7, 5, *counter[2:]), 1000, samples=3).reshape(3, -1)  # consecutive noise samples
    for k in range(3):
        assert np.array_equal(several[k], noise.words(*key, (7, 5 + k, *counter[2:]), 1000))


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("samples", [range(1), range(2, 5), range(1, 8, 3), range(0)])
@pytest.mark.parametrize("shape", [(16,), (13,), (3, 5, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_device_draws_all_noise_samples_at_once(fake_cupy, kind, samples, shape, dtype):
    sigma = 0.3
    rounding = 4 * np.finfo(dtype).eps * sigma if kind == "gaussian" else 0  # two libraries' log, cos and sin, for these few normals
    for rows in range(2, 6), range(2, 2):
        where = {**WHERE, "samples": samples, "rows": rows, "dtype": dtype}
        there, here = (noise.draw(xp, kind, shape, sigma, **where) for xp in (fake_cupy, np))
        assert there.shape == here.shape and there.dtype == here.dtype == dtype
        assert np.abs(there.get() - here).max(initial=0) <= rounding


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("units", [1, 3, 5, 13, 260])
def test_the_kernel_keeps_to_a_row(device, kind, units):
    """Its last block makes more than the row's units, behind which lies another's memory."""
    a = device.asarray(np.full((7, units), 9.0))
    noise._draw_on_gpu(device, kind, [(a[:6].reshape(2, 3, units), 0)], 1.0, 3, noise.NOISE, 0, 0, range(3))
    assert (a.get()[:6] < 7).all() and (a.get()[6] == 9).all()


def test_noise_on_a_gpu(real_cupy):
    for kind in noise.KINDS:
        for shape in (3, 5, 4), (16,):
            a, b = (noise.draw(xp, kind, shape, 0.5, **{**WHERE, "dtype": np.float32}) for xp in (real_cupy, np))
            assert np.abs(a.get() - b).max() <= (4 * 0.5 * np.finfo(np.float32).eps if kind == "gaussian" else 0)  # as on the stand-in


def test_box_muller_by_hand():
    w = np.array([[(3 << 62) | 0x40000000, 0]], dtype=np.uint64)  # u1 = 1/4, angle 3/4 of a turn; and the smallest u1
    z = noise.normals(w, np.float64)[0]
    u = np.array([0.25 + 2**-33, 2**-33])
    angle = 2 * np.pi * np.array([0.75 + 2**-33, 2**-33])
    expected = np.concatenate([np.sqrt(-2 * np.log(u)) * np.cos(angle), np.sqrt(-2 * np.log(u)) * np.sin(angle)])
    assert np.allclose(z, expected, rtol=1e-14, atol=1e-14)
    extreme = noise.normals(np.array([[2**64 - 1]], dtype=np.uint64), np.float32)
    assert np.isfinite(extreme).all()


@pytest.mark.parametrize("kind", noise.KINDS)
@given(start=st.integers(0, 5), stop=st.integers(6, 40), units=st.integers(1, 600))
def test_a_part_of_a_batch_gets_the_whole_batchs_numbers(kind, start, stop, units):
    whole = draw(kind, (units,), rows=range(stop), samples=range(3))
    assert whole.shape == (3, stop, units)
    assert np.array_equal(draw(kind, (units,), rows=range(start, stop), samples=range(1, 3)), whole[1:, start:])


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("kind", noise.KINDS)
def test_blocks_of_rows_do_not_show(kind, cores, monkeypatch):
    whole = draw(kind, rows=range(50))
    monkeypatch.setattr("npref.execution.CACHE_BLOCK", 40)
    monkeypatch.setattr("npref.execution.cores", lambda: cores)
    assert np.array_equal(draw(kind, rows=range(50)), whole)


@pytest.mark.parametrize("kind", noise.KINDS)
def test_seed_stream_step_layer_sample_and_row_all_matter(kind):
    base = draw(kind, (100,))
    for change in (dict(seed=4), dict(stream=noise.BASELINE), dict(step=6), dict(layer=2), dict(samples=range(2, 4)),
                   dict(rows=range(6, 12))):
        other = draw(kind, (100,), **change)
        assert np.abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(base.size), change
    rows = base.reshape(-1, 100)
    assert len(np.unique(rows, axis=0)) == len(rows), "samples or rows share their noise"


def test_gaussian_noise_is_gaussian():
    """False alarms: one in 10^6 each, at a fixed seed; the power check sees a 5% error of sigma."""
    z = draw(shape=(1001,), sigma=0.3, rows=range(100)).ravel() / 0.3
    assert stats.kstest(z, "norm").pvalue > 1e-6
    assert stats.kstest(1.05 * z, "norm").pvalue < 1e-6
    moments = stats.chi2.cdf(np.sum(z**2), z.size)
    assert 1e-6 < moments < 1 - 1e-6
    assert abs(np.mean(z)) < 5 / np.sqrt(z.size)
    neighbours = z.reshape(2, 100, 1001)
    for a, b in ((neighbours[0], neighbours[1]), (neighbours[:, :-1], neighbours[:, 1:]), (neighbours[..., :-1], neighbours[..., 1:])):
        assert abs(np.mean(a * b)) < 5 / np.sqrt(a.size)


def test_rademacher_noise_is_two_valued_and_balanced():
    z = draw("rademacher", (1001,), sigma=0.5, rows=range(100))
    assert set(np.unique(z)) == {-0.5, 0.5}
    assert abs(np.mean(z)) < 5 * 0.5 / np.sqrt(z.size)
    assert abs(np.mean(z[..., :-1] * z[..., 1:])) < 5 * 0.25 / np.sqrt(z.size)


def test_rademacher_bits_are_the_words_bits():
    z = draw("rademacher", (70,), sigma=1.0, samples=range(1), rows=range(2))[0, 1]
    w = noise.words(3, noise.NOISE, (1, 0, 1, 5), 1)  # a row of 70 signs takes one block of 256 bits
    assert [(1 if int(w[i // 64]) >> (i % 64) & 1 else -1) for i in range(70)] == z.tolist()


@pytest.mark.parametrize("kind", noise.KINDS)
def test_float32_noise_is_the_rounded_float64_noise(kind):
    a, b = draw(kind, (1000,), dtype=np.float32), draw(kind, (1000,))
    assert a.dtype == np.float32 and np.abs(a - b).max() < 1e-5


def test_a_convolutions_noise_is_an_image_with_channels_innermost():
    image, flat = draw(shape=(2, 3, 4)), draw(shape=(24,))
    assert image.shape == (2, 6, 2, 3, 4)
    assert np.array_equal(image.transpose(0, 1, 3, 4, 2).reshape(2, 6, 24), flat)
    assert image.transpose(0, 1, 3, 4, 2).flags.c_contiguous


def test_permutation():
    a, b = noise.permutation(0, 0, 1000), noise.permutation(0, 1, 1000)
    assert sorted(a) == list(range(1000)) and not np.array_equal(a, b)
    assert np.array_equal(a, noise.permutation(0, 0, 1000)) and not np.array_equal(a, noise.permutation(1, 0, 1000))
    assert abs(np.corrcoef(a, np.arange(1000))[0, 1]) < 0.15


def test_uniforms():
    u = noise.uniforms(1, noise.WEIGHTS, 0, 10_001)
    assert u.shape == (10_001,) and 0 < u.min() < u.max() < 1 and stats.kstest(u, "uniform").pvalue > 1e-6


def test_errors():
    with pytest.raises(ValueError, match="unknown noise 'pink': expected one of gaussian, rademacher"):
        draw("pink")
    with pytest.raises(ValueError, match="float32 or float64"):
        draw(dtype="float16")
    with pytest.raises(ValueError, match="consecutive"):
        draw(rows=range(0, 6, 2))
    with pytest.raises(ValueError, match="seed"):
        draw(seed=-1)
    with pytest.raises(ValueError, match="noise is float32 or float64, got None"):
        draw(dtype=None)
    for rows in 3, [0, 1]:
        with pytest.raises(ValueError, match="rows must be a range"):
            draw(rows=rows)


@pytest.mark.parametrize("kind", noise.KINDS)
def test_seeds_are_64_bit_words(kind, fake_cupy):
    for xp in np, fake_cupy:
        assert noise.draw(xp, kind, (13,), 1.0, **{**WHERE, "seed": 2**64 - 1}).shape == (2, 6, 13)
        for seed in (2**64, -1, np.int64(-1), 1.5):
            with pytest.raises(ValueError, match=rf"seed must be a whole number in \[0, 2\^64\), got {seed}$"):
                noise.draw(xp, kind, (13,), 1.0, **{**WHERE, "seed": seed})


@pytest.mark.parametrize("kind", noise.KINDS)
def test_what_is_no_word_of_the_counter_is_not_taken_for_one(kind, fake_cupy):
    for xp in np, fake_cupy:
        for name, values in ("step", (1.5, -1, 2**64)), ("layer", (0.5, -1, 2**64)), ("stream", (0.5, -1, 2**64)):
            for value in values:
                with pytest.raises(ValueError, match=rf"{name} must be a whole number in \[0, 2\^64\), got {value}$"):
                    noise.draw(xp, kind, (9,), 1.0, **{**WHERE, name: value})
        for samples in range(-1, 1), range(1, -2, -1), [0, 0.5], [2**64]:
            with pytest.raises(ValueError, match="a noise sample must be "):
                noise.draw(xp, kind, (9,), 1.0, **{**WHERE, "samples": samples})
        for rows, which in (range(-2, 1), "first"), (range(2**64 - 2, 2**64 + 1), "last"):
            with pytest.raises(ValueError, match=f"the {which} block must be "):
                noise.draw(xp, kind, (3,), 1.0, **{**WHERE, "rows": rows})
    for epoch in 0.5, -1:
        with pytest.raises(ValueError, match="step must be "):
            noise.permutation(0, epoch, 5)


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("units", [7, 8, 9, 255, 256, 257, 512, 513])
def test_no_two_rows_share_a_block(kind, units):
    z = draw(kind, (units,), samples=range(1), rows=range(4))[0]
    assert z.shape == (4, units) and len(np.unique(z, axis=0)) == 4


def test_normals_have_the_dtype_that_was_asked_for():
    for dtype in (np.float32, np.float64):
        assert noise.normals(np.arange(6, dtype=np.uint64).reshape(2, 3), dtype).dtype == dtype


def test_uniforms_lie_inside_the_open_interval(monkeypatch):
    """At both ends of the words, where rounding may reach 0 or 1."""
    monkeypatch.setattr(noise, "words", lambda *where: np.array([0, 2**63, 2**64 - 1, 2**64 - 1], dtype=np.uint64))
    low, middle, high, _ = noise.uniforms(0, noise.WEIGHTS, 0, 4)
    assert 0 < low == 1 - high and high < 1 and 0.5 < middle <= 0.5 + 2.0**-52


def test_uniforms_and_permutations_are_where_the_docstring_says():
    """Counter = (block, noise sample, layer, step), an epoch for a permutation's step: a run can be drawn again by anyone."""
    u = noise.uniforms(3, noise.WEIGHTS, 2, 6)
    assert np.allclose(u, noise.words(3, noise.WEIGHTS, (0, 0, 2, 0), 2)[:6] / 2.0**64, rtol=0, atol=2.0**-51)
    order = noise.permutation(3, 7, 6)
    drawn = noise.words(3, noise.SHUFFLE, (0, 0, 0, 7), 2)[:6].tolist()
    assert order.tolist() == sorted(range(6), key=drawn.__getitem__)


def test_a_permutation_keeps_the_order_of_equal_words(monkeypatch):
    monkeypatch.setattr(noise, "words", lambda *where: np.arange(1000, dtype=np.uint64) % 2)
    assert noise.permutation(0, 0, 1000).tolist() == [*range(0, 1000, 2), *range(1, 1000, 2)]


def test_numpys_integers_count_as_pythons(fake_cupy):
    where = dict(seed=3, rows=range(3), dtype="float64")
    for xp in np, fake_cupy:
        drawn = (noise.draw(xp, "gaussian", (4,), 1.0, step=np.int64(5), layer=np.int32(1), samples=np.arange(2), **where),
                 noise.draw(xp, "gaussian", (4,), 1.0, step=5, layer=1, samples=range(2), **where))
        assert np.array_equal(*map(to_host, drawn))
        apart, three = (to_host(noise.draw(xp, "gaussian", (4,), 1.0, step=5, layer=1, samples=samples, **where))
                        for samples in ([0, 2], range(3)))  # on a GPU two launches and one
        assert np.array_equal(apart, three[::2])


def test_a_number_in_place_of_noise_samples():
    with pytest.raises(TypeError, match="samples must be a list or range of noise samples' indices, got 3"):
        noise.draw(np, "gaussian", (2,), 1.0, seed=0, step=0, layer=0, samples=3, rows=range(1), dtype="float32")

"""Random numbers as a pure function of where they are used.

Philox 4x64 with 10 rounds (Salmon et al. 2011) maps key = (seed, stream) and counter = (block, noise sample, layer, step)
to a block of four 64-bit words. There is no state: any noise can be drawn again, a run resumes from (seed, step) alone, and
splitting a batch or the K noise samples over calls or devices changes nothing. NumPy's own generator makes the words on the
CPU; a GPU makes the same, and normals or signs of them at once, in one kernel (kernels.py).

A batch row of a layer with N units owns whole blocks: row b's begin at b * ceil(N / 8) for Gaussian noise (a word makes two
normals) and b * ceil(N / 256) for Rademacher noise (a word makes 64 signs). A convolution's units are taken position by
position, channels innermost, and the array is handed out as (C, H, W).
"""

from functools import partial
from math import pi, prod

import numpy as np

from .execution import in_blocks
from .kernels import launch

NOISE, BASELINE, WEIGHTS, SHUFFLE, IMAGES = range(5)  # streams: the second word of the key
KINDS = ("gaussian", "rademacher")


def words(seed, stream, counter, blocks):
    """`blocks` consecutive Philox blocks from counter = (block, noise sample, layer, step) on: (4 * blocks,) of uint64, on the host."""
    _check_words(seed, stream, counter, blocks)
    whole = sum(int(c) << 64 * i for i, c in enumerate(counter))  # NumPy counts up before it makes a block, hence the - 1
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=(whole - 1) % 2**256).random_raw(4 * blocks)


def normals(w, dtype, sigma=1.0, out=None):
    """Normals N(0, σ²) by Box-Muller, in `out` if given: (rows, n) words -> (rows, 2n), the n cosine halves before the n sine halves.

    Each word gives two 32-bit uniforms u = (integer + 1/2) / 2^32: the low half sets the radius sqrt(-2 log u), the high half
    the angle 2 pi u. The words, and so the numbers up to rounding, are the same for float32 and float64.
    """
    n, unsigned, signed = w.shape[-1], w.view(np.uint32), w.view(np.int32)  # little-endian: the low half of a word comes first
    z = np.empty((*w.shape[:-1], 2 * n), dtype=dtype) if out is None else out
    radius = unsigned[..., 0::2].astype(dtype)
    radius *= 2.0**-32
    radius += 2.0**-33
    np.log(radius, out=radius)
    radius *= -2
    np.sqrt(radius, out=radius)
    # Read as a signed integer, the high half gives the same angle less whole turns: in [-pi, pi), where float32 is finest.
    angle = signed[..., 1::2].astype(dtype)
    angle *= 2 * pi * 2.0**-32
    angle += 2 * pi * 2.0**-33
    for function, half in (np.cos, z[..., :n]), (np.sin, z[..., n:]):
        function(angle, out=half)
        half *= radius
        half *= sigma
    return z


def draw(xp, kind, shape, sigma, *, seed, step, layer, samples, rows, dtype, stream=NOISE):
    """The noise of one layer: (K, B, *shape), for K = len(samples) noise samples and B = len(rows) batch rows.

    `samples` and `rows` are absolute indices, so a part of a batch gets the very numbers that the whole would; rows are a range.
    "gaussian": N(0, sigma^2). "rademacher": +sigma or -sigma, one bit a unit, the same covariance. `layer` counts from 0. Raises ValueError
    for another kind or dtype, for rows that are no range of consecutive ones, and for a seed or an index outside [0, 2^64); TypeError for
    samples that are one number, and for what is no dtype.
    """
    return draw_layers(xp, kind, [(layer, shape)], sigma, seed=seed, step=step, samples=samples, rows=rows, dtype=dtype, stream=stream)[0]


def draw_layers(xp, kind, layers, sigma, *, seed, step, samples, rows, dtype, stream=NOISE):
    """`draw` for several layers, (index, shape) each, which are one launch on a GPU: a tuple."""
    if kind not in KINDS:
        raise ValueError(f"unknown noise {kind!r}: expected one of {', '.join(KINDS)}")
    if dtype is None or np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"noise is float32 or float64, got {dtype}")
    if not hasattr(samples, "__len__"):
        raise TypeError(f"samples must be a list or range of noise samples' indices, got {samples!r}")
    if not isinstance(rows, range) or rows.step != 1:
        raise ValueError(f"rows must be a range of consecutive ones, got {rows}")
    outs = [xp.empty((len(samples), len(rows), prod(shape)), dtype=dtype) for _, shape in layers]
    parts = [(out, index) for out, (index, _) in zip(outs, layers)]
    if xp is not np:
        consecutive = isinstance(samples, range) and samples.step == 1  # then they are one launch
        together = max(1, len(samples)) if consecutive else 1
        for k in range(0, len(samples), together):
            some = [(out[k : k + together], index) for out, index in parts]
            _draw_on_gpu(xp, kind, some, sigma, seed, stream, samples[k], step, rows)
    else:
        fill = partial(_fill_signs, _sign_table(dtype, sigma)) if kind == "rademacher" else partial(_fill_normals, float(sigma))
        for k, sample in enumerate(samples):
            for out, index in parts:
                words_of = partial(_words_of_rows, seed, stream, (sample, index, step), rows.start, _blocks(kind, out.shape[-1]))
                in_blocks(np, partial(fill, out[k], words_of), len(rows), out.shape[-1])
    return tuple(_shaped(out, shape) for out, (_, shape) in zip(outs, layers))


def _words_of_rows(seed, stream, where, start, per_row, part):
    """The words of some rows, a slice that counts from row `start` on, `per_row` blocks each: (rows, 4 * per_row)."""
    w = words(seed, stream, ((start + part.start) * per_row, *where), (part.stop - part.start) * per_row)
    return w.reshape(part.stop - part.start, 4 * per_row)


def _fill_signs(table, out, words_of, parts):
    for part in parts:
        w = words_of(part)
        out[part] = np.take(table, w.view(np.uint8), axis=0).reshape(len(w), -1)[:, : out.shape[-1]]


def _fill_normals(sigma, out, words_of, parts):
    for part in parts:
        w = words_of(part)
        if out.shape[-1] == 2 * w.shape[1]:
            normals(w, out.dtype, sigma, out=out[part])
        else:  # the last block of a row makes more than its units
            out[part] = normals(w, out.dtype, sigma)[:, : out.shape[-1]]


def _blocks(kind, units):
    """How many blocks a batch row of so many units owns."""
    return -(-units // (8 if kind == "gaussian" else 256))


def _shaped(out, shape):
    """(K, B, units) as (K, B, *shape)."""
    if len(shape) == 3:  # (C, H, W), in memory as (H, W, C)
        C, H, W = shape
        return out.reshape(*out.shape[:2], H, W, C).transpose(0, 1, 4, 2, 3)
    return out.reshape(*out.shape[:2], *shape)


def _sign_table(dtype, sigma):
    """Row b has the eight signs of the byte b, its lowest bit first: (256, 8)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8), bitorder="little").reshape(256, 8)
    return (bits.astype(dtype) * 2 - 1) * sigma


def uniforms(seed, stream, layer, n):
    """n numbers in (0, 1) with 52 random bits each, float64, on the host: for initialisation, not for noise."""
    w = words(seed, stream, (0, 0, layer, 0), -(-n // 4))[:n]
    return (w >> np.uint64(12)) * 2.0**-52 + 2.0**-53  # exact; a 53rd bit would round some sums, the last to 1


def permutation(seed, epoch, n):
    """The order of the n training samples in an epoch: (n,) of int64, on the host."""
    return np.argsort(words(seed, SHUFFLE, (0, 0, 0, epoch), -(-n // 4))[:n], kind="stable")


def _draw_on_gpu(xp, kind, layers, sigma, seed, stream, sample, step, rows):
    """The noise of consecutive noise samples from `sample` on, in each layer's array; layers: ((samples, B, units), index) each."""
    items, threads = [], 0
    for out, layer in layers:
        per_row = _blocks(kind, out.shape[-1])
        first, blocks = rows.start * per_row, len(rows) * per_row
        _check_words(seed, stream, (first, sample, layer, step), blocks)
        items.append((out, *map(np.uint64, (*out.shape, per_row, first, layer))))
        threads = max(threads, len(out) * blocks * (32 if kind == "rademacher" else 1))  # a byte's signs each, or a block's normals
    launch(xp, kind, items, (*map(np.uint64, (seed, stream, sample, step)), np.float64(sigma)), threads)


def _check_words(seed, stream, counter, blocks):
    """Raise ValueError for a word of the key or counter outside [0, 2^64), which would wrap round to another one's."""
    block, sample, layer, step = counter
    for name, number in (("seed", seed), ("stream", stream), ("the first block", block), ("the last block", block + max(blocks, 1) - 1),
                         ("a noise sample", sample), ("layer", layer), ("step", step)):
        try:
            whole = 0 <= number < 2**64 and int(number) == number
        except TypeError:
            whole = False
        if not whole:
            raise ValueError(f"{name} must be a whole number in [0, 2^64), got {number}")

"""Dense and convolutional layers: descriptions, and the way from a layer's input to rows and back.

A layer unfolds its input into rows (Dense: one row a sample; Conv: one im2col patch a position), multiplies the rows by
a matrix, and folds the result back. Everything between `unfold` and `fold` is the same matrix code for both.

Letters in shape comments: B samples, C channels, (kh, kw) kernel, H W a convolution's output and H_in W_in its input, P = H W positions
(Dense: 1), n_in row length, n_out units a row. A layer has N_l = P * n_out units.
"""

from dataclasses import dataclass
from math import prod
from numbers import Integral

import numpy as np

from .backend import array_module
from .execution import in_blocks
from .functions import ACTIVATIONS, check_slope, finite


@dataclass(frozen=True)
class Dense:
    """A fully-connected layer of `units` units; an image at its input is flattened as (C, H, W). A network's last layer has an activation
    like the others: "identity" for logits.

    Raises ValueError or TypeError for what no layer can be, as Conv does.
    """

    units: int
    activation: str = "leaky_relu"
    slope: float = 0.2
    bias: bool = False

    def __post_init__(self):
        object.__setattr__(self, "units", _count("Dense units", self.units))
        _check_options(self)

    @property
    def n_out(self):
        """Units of an output row: all of them."""
        return self.units


@dataclass(frozen=True)
class Conv:
    """A convolution (cross-correlation, as everywhere in deep learning) with `channels` output channels.

    kernel, stride and padding are an int or a (vertical, horizontal) pair; padding is with zeros.
    """

    channels: int
    kernel: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    activation: str = "leaky_relu"
    slope: float = 0.2
    bias: bool = False

    def __post_init__(self):
        object.__setattr__(self, "channels", _count("Conv channels", self.channels))
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0)):
            value = getattr(self, name)
            pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
            if len(pair) != 2:
                raise ValueError(f"Conv {name} must be an int or a pair of ints, got {value!r}")
            object.__setattr__(self, name, tuple(_count(f"Conv {name}", v, least) for v in pair))
        _check_options(self)

    @property
    def n_out(self):
        """Units of an output row: one a channel, at each position."""
        return self.channels


Layer = Dense | Conv


def output_shape(layer, in_shape):
    """The shape of one sample's output: (units,) or (channels, H', W'). Raises ValueError if the input does not fit."""
    if isinstance(layer, Dense):
        return (layer.units,)
    if len(in_shape) != 3:
        raise ValueError(f"Conv needs an image (C, H, W) at its input, got shape {in_shape}: "
                         "put convolutions before dense layers, and give grey images a channel, (1, H, W)")
    sizes = []
    for size, k, s, p in zip(in_shape[1:], layer.kernel, layer.stride, layer.padding):
        if k > size + 2 * p:
            raise ValueError(f"kernel {layer.kernel} is larger than its input {in_shape} with padding {layer.padding}: "
                             "use a smaller kernel, more padding, or fewer convolutions before it")
        sizes.append((size + 2 * p - k) // s + 1)
    return (layer.channels, *sizes)


def weight_shape(layer, in_shape):
    """(units, n_in) or (C_out, C_in, kh, kw), as PyTorch has them."""
    if isinstance(layer, Dense):
        return (layer.units, prod(in_shape))
    return (layer.channels, in_shape[0], *layer.kernel)


def unfold(layer, x):
    """The rows that the weight matrix multiplies: (B, *in_shape) -> (B*P, n_in).

    A patch is ordered (C_in, kh, kw), the order of a flattened kernel; rows run over samples, then positions.
    """
    if isinstance(layer, Dense):
        return x.reshape(len(x), -1)
    xp, C = array_module(x), x.shape[1]
    (kh, kw), (sh, sw) = layer.kernel, layer.stride
    _, H, W = output_shape(layer, x.shape[1:])
    image = _pad(xp, x.transpose(0, 2, 3, 1), layer.padding)  # (B, H_in + 2 ph, W_in + 2 pw, C)
    if xp is not np:  # one copy, for launches are what costs there
        b, r, s, c = image.strides
        windows = xp.lib.stride_tricks.as_strided(image, (len(x), H, W, C, kh, kw), (b, r * sh, s * sw, c, r, s))
        return windows.reshape(len(x) * H * W, -1)
    patches = xp.empty((len(x), H, W, C, kh, kw), dtype=x.dtype)

    def gather(blocks):
        for b in blocks:
            for i in range(kh):
                for j in range(kw):  # position (r, s), tap (i, j) is pixel (r sh + i, s sw + j)
                    patches[b, ..., i, j] = image[b, i : i + sh * H : sh, j : j + sw * W : sw]

    in_blocks(xp, gather, len(x), patches[0].size)
    return patches.reshape(len(x) * H * W, -1)


def unfold_adjoint(layer, rows, in_shape):
    """The transpose of `unfold` as a linear map (col2im for a convolution): (B*P, n_in) -> (B, *in_shape)."""
    if isinstance(layer, Dense):
        return rows.reshape(-1, *in_shape)
    xp = array_module(rows)
    (kh, kw), (sh, sw), (ph, pw) = layer.kernel, layer.stride, layer.padding
    C, H_in, W_in = in_shape
    _, H, W = output_shape(layer, in_shape)
    patches = rows.reshape(-1, H, W, C, kh, kw)
    image = xp.zeros((len(patches), H_in + 2 * ph, W_in + 2 * pw, C), dtype=rows.dtype)

    def scatter(blocks):
        for b in blocks:
            for i in range(kh):
                for j in range(kw):
                    image[b, i : i + sh * H : sh, j : j + sw * W : sw] += patches[b, ..., i, j]

    in_blocks(xp, scatter, len(patches), patches[0].size)
    return image[:, ph : ph + H_in, pw : pw + W_in].transpose(0, 3, 1, 2)


def fold(rows, out_shape):
    """Rows of units as the layer's output, without a copy: (B*P, n_out) -> (B, *out_shape)."""
    if len(out_shape) == 1:
        return rows
    C, H, W = out_shape
    return rows.reshape(-1, H, W, C).transpose(0, 3, 1, 2)


def to_rows(x):
    """The inverse of `fold`: (B, units) or (B, C, H, W) -> (B*P, n_out); a copy unless channels lie innermost in memory."""
    return x if x.ndim == 2 else x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def _pad(xp, image, padding):
    ph, pw = padding
    if ph == pw == 0:
        return image
    B, H_in, W_in, C = image.shape
    padded = xp.zeros((B, H_in + 2 * ph, W_in + 2 * pw, C), dtype=image.dtype)
    padded[:, ph : ph + H_in, pw : pw + W_in] = image
    return padded


def _count(what, value, least=1):
    """The value as Python's int, as NumPy's would overflow."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(f"{what} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")
    return int(value)


def _check_options(layer):
    if layer.activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {layer.activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    if not isinstance(layer.bias, bool):
        raise TypeError(f"bias must be True or False, got {layer.bias!r}")
    object.__setattr__(layer, "slope", finite("slope", layer.slope))
    check_slope(layer.slope)

"""A run's configuration, checked when it is made, and the paper's learning rates."""

from dataclasses import dataclass
from numbers import Integral, Real

from .backend import BACKENDS
from .batches import INPUTS
from .functions import ACTIVATIONS, LOSSES, check_derivative, check_slope, finite
from .network import ARCHITECTURES, DTYPES, INITS, architecture
from .noise import KINDS
from .optim import OPTIMIZERS
from .rules import ANP_NORMS, split_method

# Adam's learning rates, v2 Table 2. Its empty cells are gone from the text; rows with fewer rates than columns are placed by where Tables 3
# and 4 have results, so that NP's 1e-4 could be conv's, and DNP's last 1e-3, too. `default_lr` makes a stated choice for the others.
TABLE_2 = {
    ("bp", "fc1"): 1e-3, ("bp", "fc3"): 1e-4, ("bp", "conv"): 1e-3, ("bp", "conv-tiny"): 1e-4,
    ("dbp", "fc1"): 1e-3, ("dbp", "fc3"): 1e-3, ("dbp", "conv"): 1e-3,
    ("np", "fc1"): 1e-3, ("np", "fc3"): 1e-4,
    ("dnp", "fc1"): 1e-3, ("dnp", "fc3"): 1e-3, ("dnp", "fc6"): 5e-3, ("dnp", "fc9"): 5e-3, ("dnp", "conv-tiny"): 1e-3,
    ("anp", "fc3"): 1e-4, ("anp", "conv"): 1e-4,
    ("danp", "fc3"): 1e-3, ("danp", "fc6"): 5e-3, ("danp", "fc9"): 5e-3, ("danp", "conv"): 1e-4, ("danp", "conv-tiny"): 1e-3,
    ("inp", "fc3"): 1e-4, ("inp", "conv"): 1e-4,
    ("dinp", "fc3"): 1e-3, ("dinp", "fc6"): 5e-3, ("dinp", "fc9"): 5e-3, ("dinp", "conv"): 1e-4, ("dinp", "conv-tiny"): 1e-3,
}


def default_lr(method, arch):
    """Table 2's rate for Adam. Where it has none: 1e-3 for fc1 and for decorrelated methods, 1e-4 for plain ones.

    On fc1 all cells are 1e-3, and with a single layer ANP is INP and NP differs in the length of each sample's part alone. Elsewhere the
    choice is fc3's rate. On fc6 and fc9 a tenth of Table 2's: at 5e-3 training diverges or unlearns there, and 5e-4 is half of fc3's rate,
    as DANP's is in v1.
    """
    lr = TABLE_2.get((method, arch), 1e-3 if arch == "fc1" or split_method(method)[1] else 1e-4)
    return lr / 10 if arch in ("fc6", "fc9") and (method, arch) in TABLE_2 else lr


@dataclass(frozen=True)
class Config:
    """Everything that a run's numbers depend on, besides the data. Raises TypeError for wrong types, ValueError for wrong
    values and for combinations in which one means nothing.

    sigma2: noise variance σ². samples: noise samples K an update. lr: η, None for `default_lr`. decor_lr: α. See `README.md`.
    """

    method: str = "danp"
    arch: str = "fc3"
    dataset: str = "auto"
    inputs: str = "auto"
    backend: str = "numpy"
    dtype: str = "float32"
    epochs: int = 10
    batch_size: int = 1000
    lr: float | None = None
    decor_lr: float = 1e-3
    sigma2: float = 1e-6
    samples: int = 1
    noise: str = "gaussian"
    noisy_baseline: bool = False
    anp_norm: str = "network"
    loss: str = "cce"
    optimizer: str = "adam"
    activation: str = "leaky_relu"
    init: str = "he"
    slope: float = 0.2
    bias: bool = False
    padding: int = 0
    seed: int = 0
    limit_train: int | None = None
    limit_test: int | None = None
    eval_train: bool = False

    def __post_init__(self):
        rule, decorrelate = split_method(self.method)
        if not isinstance(self.dataset, str):
            raise TypeError(f"dataset must be a name, got {self.dataset!r}")
        for name, known in (("arch", ARCHITECTURES), ("inputs", INPUTS), ("backend", BACKENDS), ("dtype", DTYPES),
                            ("noise", KINDS), ("anp_norm", ANP_NORMS), ("loss", LOSSES), ("optimizer", OPTIMIZERS),
                            ("activation", ACTIVATIONS), ("init", INITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("samples", 1), ("padding", 0), ("seed", 0), ("limit_train", 1),
                            ("limit_test", 1)):
            value = getattr(self, name)
            if value is None and name.startswith("limit"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} must be an int, got {value!r}")
            object.__setattr__(self, name, int(value))
            below = 64 if name == "seed" else 63
            if not least <= value < 2**below:
                raise ValueError(f"{name} must be at least {least} and below 2^{below}, got {value}")
        for name in ("noisy_baseline", "bias", "eval_train"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("lr", "decor_lr", "sigma2", "slope"):
            value = getattr(self, name)
            if value is None and name == "lr":
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if name != "slope" and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
            object.__setattr__(self, name, finite(name, value))
        smallest = {"float32": 2.0**-126, "float64": 2.0**-1022}[self.dtype]
        if not smallest <= self.sigma2 <= 1 / smallest:
            raise ValueError(f"sigma2={self.sigma2} is out of {self.dtype}'s range: expected {smallest:.1e} to {1 / smallest:.1e}")
        check_slope(self.slope)
        if self.lr is None:
            if self.optimizer == "sgd":
                raise ValueError("sgd needs lr: Table 2's learning rates are Adam's; try 1e-3 and double it")
            object.__setattr__(self, "lr", default_lr(self.method, self.arch))
        # An option that would change nothing is a slip, and is said to be one.
        hidden = (self.arch != "fc1", "fc1 has no hidden layer")
        noisy = (rule != "bp", f"{self.method} draws no noise")
        for name, *conditions in (
            ("sigma2", noisy), ("samples", noisy), ("noise", noisy),
            ("noisy_baseline", noisy, (rule in ("np", "anp"), f"{self.method} perturbs one layer at a time, and a noisy baseline "
                                       "needs noise in all layers at once, as np, anp, dnp and danp have")),
            ("anp_norm", (rule == "anp", f"it belongs to anp and danp, not to {self.method}"), hidden),
            ("decor_lr", (decorrelate, f"{self.method} does not decorrelate")),
            ("activation", hidden),
            ("slope", hidden, (self.activation == "leaky_relu", f"it belongs to leaky_relu, not to {self.activation}")),
            ("padding", (self.arch.startswith("conv"), f"{self.arch} has no convolution")),
        ):
            value = getattr(self, name)
            for applies, reason in conditions:
                if not applies and value != getattr(Config, name):
                    raise ValueError(f"{name}={value} has no effect: {reason}; leave it out")
        if rule == "bp":
            check_derivative(self.method, self.activation)

    def network(self, input_shape, classes):
        """The architecture by name, for this data."""
        return architecture(self.arch, input_shape, classes, activation=self.activation, slope=self.slope, bias=self.bias,
                            padding=self.padding)

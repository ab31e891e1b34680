"""npref: node perturbation learning, from scratch, on NumPy or CuPy.

The reference implementation of "Effective Learning with Node Perturbation in Multi-Layer Neural Networks" (Dalm, van Gerven &
Ahmad): BP, NP, INP, ANP and their decorrelated forms, on dense and convolutional networks, in explicit matrix code.

    equations   Eq. 1-6 and the decorrelation rule, literally, on one sample: read this first
    rules       the same rules on mini-batches and K noise samples
    step        one mini-batch: noise, update, new parameters
    train       the training loop;  runlog, datasets: what it writes and reads
    oracle      golden vectors, and the check of other implementations against them

What is not among the names below is imported by its module, as `from npref.train import train`.
"""

from .backend import Backend, BackendUnavailable, array_module, get_backend, synchronize, to_host
from .decorrelation import decorrelation_step, mean_squared_correlation, update_decorrelation
from .functions import activate, derivative, loss, loss_gradient, one_hot
from .layers import Conv, Dense
from .network import Network, Params, Trace, architecture, forward, init_params, without_decorrelation
from .optim import AdamState, adam_step, init_adam, sgd_step
from .rules import METHODS, Update, anp_update, bp_update, inp_update, np_update, split_method

__version__ = "0.1.0"

__all__ = [
    "METHODS", "AdamState", "Backend", "BackendUnavailable", "Conv", "Dense", "Network", "Params", "Trace", "Update",
    "activate", "adam_step", "anp_update", "architecture", "array_module", "bp_update", "decorrelation_step", "derivative",
    "forward", "get_backend", "init_adam", "init_params", "inp_update", "loss", "loss_gradient", "mean_squared_correlation",
    "np_update", "one_hot", "sgd_step", "split_method", "synchronize", "to_host", "update_decorrelation",
    "without_decorrelation",
]

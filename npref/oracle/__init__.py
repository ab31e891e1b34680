"""npref as a numerical oracle: golden vectors, and the check of any implementation against them.

    python -m npref.oracle write vectors.h5
    python -m npref.oracle check vectors.h5 --adapter my_module:my_function

or in your own tests:

    from npref import oracle
    results = list(oracle.check("vectors.h5", my_function))           # an iterator: a case is checked when its result is asked for
    assert not [r for r in results if r.wrong] and any(r.checked for r in results)

An **adapter** is a function of one `Case`: its inputs are NumPy arrays (see `Case` for all of them), and it returns a dict with any of
these, as arrays of NumPy, CuPy, PyTorch, JAX or TensorFlow. For a case that it does not support it returns None or raises
NotImplementedError. Compute in the dtype of the inputs. B samples, K noise samples, L layers, P positions of a convolution's output;
lists are over layers l = 0 ... L-1, and None or a missing entry is not checked.

    x_star      list (B, n_in), for a convolution (B, n_in, P)   x*: what W multiplies, R applied; clean pass
    a, x        list (B, *shape)               pre-activation with bias, and output, of the clean pass
    loss        (B,)                           of each sample, clean pass
    g           list (B, *shape)               bp only: ∂L/∂a_l of each sample
    a_tilde     list (K, B, *shape)            noisy pre-activation, noise included; inp: (K, L, B, *shape), axis 1 the perturbed layer
    noisy_loss  (K, B), inp: (K, L, B)
    dL          like noisy_loss                noisy - clean
    da          list (K, B, *shape)            anp only: ã - a
    dW, db      list, like W and b             the update to be subtracted: mean over samples and noise samples, sum over positions
    dR          list (n_in, n_in)              (⟨x* x*ᵀ⟩ - diag⟨(x*)²⟩) R, ⟨·⟩ a mean over samples and positions; R ← R - alpha dR.
                                               Not by way of R's change over alpha, which rounds too much: after_1/R has that
    after_1/W, /b, /R, /m_W, /v_W, /m_b, /v_b  lists: parameters after one step, and Adam's moments of W and b (R has none); copies, if you
                                               train in place
    after_10/W, ...                            and after ten, every one on the same x, t, eps (and baseline), with the new parameters

The rules are README's; npref/equations.py has a function for each. N_l counts channels times positions, and every layer's noise
is added, the output layer's too. With case.anp_norm "layer" ‖δa_l‖² stands in for ‖δa‖², and N is still the network's. g is not
divided by B; dW of bp is its mean. Updates of W, b and R all use what was there before the step. cce is of the outputs' softmax;
mse sums over outputs, mse-mean averages. step is 1 for a > 0, else 0; sign is 1, else -1. adam-eps-hat: W - lr √(1 - β₂ᵗ) / (1 - β₁ᵗ) m /
(√v + ε). An entry for no bias or no R is None or left out; a quantity that the case does not have is ignored.

With a noisy baseline (case.baseline) that pass is the clean pass in all of the above, and NP's update has the noisy pass's own ε.
`npref/oracle/adapter.py` is an adapter of 80 lines; examples/adapters/ has them for PyTorch and JAX.
"""

from .adapter import self
from .cases import Case
from .checker import TOLERANCE, CannotRun, Result, check, compare
from .conventions import CONVENTIONS, Convention
from .files import read, write

__all__ = ["CONVENTIONS", "TOLERANCE", "CannotRun", "Case", "Convention", "Result", "check", "compare", "read", "self", "write"]

"""How other code's numbers map onto the paper's. A convention changes only what is expected, never what an adapter is given."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Convention:
    """What is computed otherwise than in the paper, as npref reads it; the defaults are `paper`.

    Each field also serves as a possible explanation of a difference: see `VARIANTS`.
    """

    text: str = ""
    delta: int = 1  # -1: δL and δa are clean - noisy; the two signs cancel in the updates of INP and ANP, and NP's is corrected for
    sum_W: bool = False  # summed over the batch, not averaged
    sum_b: bool = False
    root_n: bool = False  # √N for N, √N_l for N_l
    input_units: bool = False  # N counts the input's units too
    layer_norm: bool = False  # ANP's ‖δa_l‖² for ‖δa‖², and the reverse where the case asks for the former
    norm_1: bool = False  # ‖δa‖ for ‖δa‖², of INP ‖v_l‖ for ‖v_l‖²
    mean_norm: bool = False  # the mean over the batch of ‖δa‖², of INP of ‖v_l‖², for each sample's own
    sum_norm: bool = False  # their sum over the batch
    every_layer: bool = False  # INP's passes have every layer's noise
    first_noise: bool = False  # the first noise sample K times
    baseline: bool = True  # False: without the baseline's noise
    slope: float | None = None  # of leaky ReLUs, for each layer's own
    flattened_last: bool = False  # an image as (H, W, C) where a dense layer follows
    patches_last: bool = False  # a patch as (kh, kw, C_in)
    raw_inputs: bool = False  # the update multiplies x, not x*
    raw_moment: bool = False  # R's rule has the moment of x, not of x*
    R_forward: bool = True  # False: x* = x
    R_backward: bool = True  # False: g_{l-1} = f'(a_{l-1}) ⊙ W_lᵀ g_l, without R
    shared_noise: bool = False  # the first sample's noise for every sample of the batch
    batch_loss: bool = False  # δL is the difference of batch means, one number for every sample
    noisy_inputs: bool = False  # the update multiplies the noisy pass's x*, not the clean pass's
    output_noise: bool = True  # False: no noise on the last layer
    R_transposed: bool = False  # x* = Rᵀ x
    scaled_decorrelation: bool = False  # CorrelationsRuinGD's rule for R: see reference.py
    transposed: bool = False  # weights, and what has their shape, are expected as (n_in, n_out)
    mse_mean: bool = False  # squared errors are averaged over the outputs
    eps_hat: bool = False  # Adam's ε is added before bias correction
    beta2: float = 0.999
    adam_eps: float = 1e-7
    rules: tuple = ("bp", "np", "inp", "anp")  # what that code has
    conv: bool = True
    samples: bool = True  # whether it has K > 1


CONVENTIONS = {
    "paper": Convention("v2 of the paper, gaps read as README's \"What the text leaves open\" says"),
    "danp_open_source": Convention(
        "SanderDalm/DANP_open_source, TensorFlow: δL and δa are clean - noisy, W and what has its shape are (n_in, n_out), "
        "mse is averaged over outputs, adam is Keras's (ε-hat); dense layers only",
        delta=-1, transposed=True, mse_mean=True, eps_hat=True, conv=False),
    "decorbp": Convention(
        "artcogsys/decorbp before its commit 677a9c2, PyTorch: √N for N, one δL for the batch (the difference of mean losses), weight "
        "updates summed and bias updates averaged over the batch; its κ is 0, for which its rule for R is the paper's; dense layers only",
        root_n=True, batch_loss=True, sum_W=True, conv=False, samples=False),
    "mtj": Convention(
        "artcogsys/MTJ-Node-Perturbation, PyTorch: δL and δa are clean - noisy, updates summed over the batch; its first noisy pass is "
        "the case's baseline; without the demeaning bias of its decorrelation; ANP on dense layers only",
        delta=-1, sum_W=True, sum_b=True, rules=("anp",), conv=False, samples=False),
    "crgd": Convention(
        "nasiryahm/CorrelationsRuinGD, PyTorch, decorrelation method \"scaled\" (inputs not demeaned): R is first multiplied by "
        "⟨‖x‖ / ‖x*‖⟩, the moment keeps its diagonal, both are measured on the first ⌊B/10⌋ + 1 samples, and dR is their product; "
        "δL is clean - noisy; Adam's β₂ is 0.9999",
        delta=-1, scaled_decorrelation=True, beta2=0.9999, rules=("bp", "np"), samples=False),
    "nodepert": Convention(
        "countzerozzz/nodepert, JAX: the first sample's noise serves the whole batch, one δL for the batch, updates multiply the noisy "
        "pass's inputs, mse is averaged over outputs",
        shared_noise=True, batch_loss=True, noisy_inputs=True, mse_mean=True, rules=("bp", "np"), samples=False),
}

# What a difference may come from, tried in this order: (the one field that differs, and what to tell).
VARIANTS = (
    (dict(delta=-1), "the sign: clean minus noisy; δL and δa are noisy minus clean"),
    (dict(shared_noise=True), "one noise draw for all samples of the batch: every sample needs its own"),
    (dict(batch_loss=True), "one δL for the whole batch, the difference of mean losses: δL is a number for every sample"),
    (dict(noisy_inputs=True), "noisy presynaptic activity: the update multiplies the clean pass's x*"),
    (dict(sum_W=True, sum_b=True), "summed over the batch: the mean is expected"),
    (dict(root_n=True), "√N in place of N (of INP: √N_l of N_l)"),
    (dict(input_units=True), "N counts the input's units: it is the sum of N_1 ... N_L"),
    (dict(layer_norm=True), "the other norm of δa: it is the whole network's, with case.anp_norm layer that of each layer by itself"),
    (dict(norm_1=True), "a norm in place of its square: ‖δa‖², of INP ‖v_l‖²"),
    (dict(mean_norm=True), "a squared norm averaged over the batch: ‖δa‖², of INP ‖v_l‖², is a number for every sample"),
    (dict(sum_norm=True), "a squared norm summed over the batch: ‖δa‖², of INP ‖v_l‖², is a number for every sample"),
    (dict(every_layer=True), "noise in every layer: the pass for layer l has it in layer l alone"),
    (dict(first_noise=True), "the first noise sample in place of every one"),
    (dict(baseline=False), "the baseline's noise is left out: with case.baseline a noisy pass takes the clean one's place"),
    (dict(slope=0.01), "leaky ReLUs of slope 0.01, as many libraries' are: a layer's is case.layers[l].slope"),
    (dict(flattened_last=True), "an image flattened as (H, W, C): it is (C, H, W)"),
    (dict(patches_last=True), "patches as (kh, kw, C_in): they are (C_in, kh, kw)"),
    (dict(raw_inputs=True), "R is missing in the update: it multiplies x* = R x, not x"),
    (dict(raw_moment=True), "R is missing in its own rule: the moment is of x* = R x, not of x"),
    (dict(R_forward=False), "R is missing: W multiplies x* = R x"),
    (dict(R_backward=False), "R is missing on the way back: g_{l-1} = f'(a_{l-1}) ⊙ R_{l-1}ᵀ W_lᵀ g_l"),
    (dict(output_noise=False), "no noise on the output layer: every pre-activation is perturbed"),
    (dict(R_transposed=True), "Rᵀ in place of R: x* = R x"),
    (dict(scaled_decorrelation=True), "R rescaled, or its moment's diagonal kept: the rule is (⟨x* x*ᵀ⟩ - diag⟨(x*)²⟩) R"),
    (dict(mse_mean=True), "squared errors averaged over the outputs: mse is their sum"),
    (dict(eps_hat=True), "Adam's ε added before bias correction (ε-hat form, as Keras)"),
    (dict(adam_eps=1e-8), "Adam with ε = 1e-8: it is 1e-7"),
    (dict(beta2=0.9999), "Adam with β₂ = 0.9999: it is 0.999"),
)

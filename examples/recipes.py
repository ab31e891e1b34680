"""What the paper ran: every table and figure of both versions, as data. `reproduce.py` runs, tabulates and draws them.

A recipe is a list of cells; a cell is one configuration (see npref/config.py) and the paper's figures for it. Cells of several
recipes that are the same configuration are one run. v1 and v2 are the paper's two versions.
"""

from dataclasses import dataclass, replace

DECORRELATED = ("dnp", "danp", "dinp")


@dataclass(frozen=True)
class Cell:
    """One configuration. options: what differs from Config's defaults. paper: (train, test), % accuracy or loss; None where it has none.

    search: None, or the rate from which the learning rate is doubled first (examples/lr_search.py). paper_lr: the paper's own rate
    where ours is searched.
    """

    method: str
    arch: str
    dataset: str = "cifar10"
    options: tuple = ()
    paper: tuple = (None, None)
    search: float | None = None
    paper_lr: float | None = None


@dataclass(frozen=True)
class Recipe:
    """title and source say what it is. figure: the function of plots.py; alignment: arguments of examples/alignment.py instead of cells.

    epochs: what a run takes unless --epochs says otherwise; search_epochs, search_seeds: what a learning rate is tried for and with.
    """

    title: str
    source: str
    cells: tuple = ()
    alignment: tuple = ()
    epochs: int = 50
    search_epochs: int = 2
    search_seeds: int = 1
    searches_only: bool = False
    seeds: int = 3
    figure: str = "plot_curves"


def cells(arch, figures):
    """One cell for each method in `figures`: {method: (train, test)}."""
    return tuple(Cell(method, arch, paper=paper) for method, paper in figures.items())


def variants(cells, methods, *options):
    """The cells of these methods with further options, of which each is a list of pairs. Where one is a rate, none is searched."""
    return tuple(replace(c, options=(*c.options, *option), search=None if "lr" in dict(option) else c.search)
                 for c in cells if c.method in methods for option in options)


# v2, Table 3: peak accuracies on CIFAR-10, % (train, test). CCE, Adam, Table 2's rates, but a tenth of them on fc6 and fc9, where they do
# not train (why-deep).
FC1 = cells("fc1", {"bp": (41.3, 39.3), "dbp": (44.9, 40.9), "np": (38.5, 38.2), "dnp": (42.8, 40.2)})
FC3 = cells("fc3", {"bp": (59.6, 51.5), "dbp": (99.6, 54.3), "np": (28.1, 28.1), "dnp": (44.9, 42.1), "anp": (30.4, 30.6),
                    "danp": (48.5, 44.4), "inp": (32.0, 32.0), "dinp": (52.6, 46.3)})
FC6 = cells("fc6", {"dnp": (46.7, 43.1), "danp": (47.3, 44.2), "dinp": (53.0, 46.6)})
FC9 = cells("fc9", {"dnp": (40.5, 38.6), "danp": (44.8, 42.7), "dinp": (52.0, 45.3)})
CONV = cells("conv", {"bp": (100, 62.1), "dbp": (100, 60.5), "np": (45.2, 44.5), "dnp": (50.2, 47.9), "anp": (52.7, 49.9),
                      "danp": (58.2, 52.6), "inp": (52.3, 49.9), "dinp": (57.9, 52.2)})

# v2, Section 3.4: both passes noisy. The paper shows curves, no numbers.
NOISY_BASELINE = tuple(Cell(method, "fc3", options=(("noisy_baseline", True),)) for method in ("dnp", "danp"))

# v2, Table 4: peak accuracies on Tiny ImageNet, %. The paper's α is 1e-3 everywhere, at which training diverges here in the fourth or fifth
# step (why-tiny): R's update overshoots once α times the largest eigenvalue of its input's moment, which grows with the inputs, is above 2,
# and the first dense layer has 12,800 of them.
TINY = (Cell("bp", "conv-tiny", "tiny-imagenet", paper=(55.5, 14.5)),
        *(Cell(method, "conv-tiny", "tiny-imagenet", (*((("samples", k),) if k > 1 else ()), ("decor_lr", 1e-4)), paper)
          for method, k, paper in (("danp", 1, (2.2, 2.1)), ("danp", 10, (13.5, 9.0)), ("danp", 30, (32.8, 11.3)),
                                   ("danp", 100, (35.4, 12.0)), ("dinp", 1, (2.0, 2.0)), ("dinp", 10, (11.4, 8.1)),
                                   ("dinp", 30, (26.7, 11.8)), ("dinp", 100, (60.8, 13.4)), ("dnp", 100, (9.7, 7.5)))))

# v2, Appendix J: final test loss. Inferred: SGD, as the doubling of rates is v1's, and the squared error averaged over the torques.
SARCOS_OPTIONS = (("loss", "mse-mean"), ("optimizer", "sgd"))
SARCOS = tuple(Cell(method, "sarcos", "sarcos", SARCOS_OPTIONS + ((("decor_lr", 1e-4),) if method in ("dnp", "danp") else ()),
                    (None, loss), search=1e-7)
               for method, loss in (("np", 11.18), ("dnp", 10.51), ("anp", 15.86), ("danp", 9.79), ("bp", 9.48), ("dbp", 7.02)))


def v1_cells(arch, figures, dataset="cifar10"):
    """v1's Tables 2 and 3: SGD, squared error, rates by doubling from 1e-6. figures: {method: (paper's rate, train, test)}."""
    options = (("loss", "mse"), ("optimizer", "sgd"))
    return tuple(Cell(method, arch, dataset, options + ((("anp_norm", "layer"),) if "anp" in method else ()), (train, test), search=1e-6,
                      paper_lr=lr) for method, (lr, train, test) in figures.items())


V1_FC1 = v1_cells("fc1", {"np": (8.2, 41.6, 38.4), "dnp": (1.0e3, 48.2, 37.5), "bp": (8.0e-6, 42.0, 38.0), "dbp": (1.0e-3, 49.0, 39.0)})
V1_FC3 = v1_cells("fc3", {"np": (0.26, 39.2, 39.2), "dnp": (1.3e2, 99.0, 46.2), "anp": (0.26, 39.6, 39.7), "danp": (1.3e2, 94.6, 45.7),
                          "inp": (1e-3, 44.4, 43.2), "dinp": (0.26, 99.9, 47.8), "bp": (6.4e-5, 96.7, 55.7), "dbp": (4.1e-3, 100, 54.1)})
V1_FC6 = v1_cells("fc6", {"danp": (66, 95.5, 41.6), "dinp": (0.26, 100, 47.3)})
V1_FC9 = v1_cells("fc9", {"danp": (66, 92.1, 40.6), "dinp": (0.26, 100, 46.5)})
V1_CONV = v1_cells("conv", {"np": (None, 5.5, 5.8), "dnp": (None, 38.6, 18.6), "anp": (16, 14.2, 11.8), "danp": (5.2e2, 77.1, 22.2),
                            "inp": (6.4e-2, 21.1, 16.6), "dinp": (2.0, 84.6, 24.7), "bp": (5.1e-4, 36.1, 26.1),
                            "dbp": (1.0e-3, 99.2, 29.7)}, "cifar100")
V1_NOISY_BASELINE = tuple(Cell(c.method, c.arch, c.dataset, (*c.options, ("noisy_baseline", True)), search=1e-6)
                          for c in V1_FC3 if c.method in ("dnp", "danp"))

# What the paper's text leaves open, one thing at a time (on conv also several), where a cell of Table 3 comes out otherwise than printed.
BIAS, EPS_HAT, GLOROT, UNIFORM, STANDARD = (("bias", True), ("optimizer", "adam-eps-hat"), ("init", "glorot"), ("init", "uniform"),
                                            ("inputs", "standard"))
WHY_FC1 = variants(FC1, ("bp", "np"), *([option] for option in (BIAS, EPS_HAT, GLOROT, UNIFORM, STANDARD, ("lr", 5e-4), ("lr", 2e-3))))
WHY_FC3 = variants(FC3, ("bp",), *([option] for option in (("lr", 5e-5), BIAS, EPS_HAT, GLOROT, UNIFORM, ("slope", 0.01))))
WHY_CONV = (*variants(CONV, ("bp", "np", "anp", "danp"), [("padding", 1)]),
            *variants(CONV, ("bp", "anp", "dnp"), [STANDARD]),
            *variants(CONV, ("np",), [STANDARD], [BIAS], [("lr", 5e-4)]),
            *variants(CONV, ("np", "anp", "danp", "inp", "dinp"), [("lr", 1e-3)]),
            *variants(CONV, ("dnp",), [("lr", 5e-4)], [("lr", 2e-3)], [("padding", 1), ("lr", 5e-4)]),
            *variants(CONV, ("bp", "dbp"), [("lr", 5e-4)], [("lr", 2e-3)]),
            *variants(CONV, ("bp",), [("lr", 4e-3)]),
            *variants(CONV, ("dbp",), [("padding", 1)]),
            *variants(CONV, ("np", "anp"), [STANDARD, ("lr", 5e-4)], [STANDARD, ("lr", 1e-3)]),
            *variants(CONV, ("np", "anp", "inp"), [STANDARD, ("padding", 1), ("lr", 5e-4)]),
            *variants(CONV, ("np", "anp"), [STANDARD, ("padding", 1), ("lr", 1e-3)]),
            *variants(CONV, ("np",), *([STANDARD, ("padding", 1), init, ("lr", 5e-4)] for init in (GLOROT, UNIFORM))),
            *variants(CONV, ("bp",), [("padding", 1), ("lr", 2e-3)]))
AS_PRINTED = ("lr", 5e-3)  # Table 2's rate for six and nine hidden layers
WHY_DEEP = (*variants(FC6 + FC9, DECORRELATED, [AS_PRINTED]),
            *variants(FC6, ("danp",), [UNIFORM, AS_PRINTED], [GLOROT, AS_PRINTED], [("lr", 1e-3)]))
AT_PAPERS_ALPHA = tuple(replace(c, options=tuple(option for option in c.options if option[0] != "decor_lr")) for c in TINY
                        if c.method in ("danp", "dinp") and dict(c.options).get("samples", 1) in (1, 10))
WHY_TINY = (*AT_PAPERS_ALPHA, *variants(AT_PAPERS_ALPHA[:1], ("danp",), [GLOROT]),
            *variants(TINY, ("bp",), [("lr", 1e-3)]))  # the other methods' rate there
NETWORK_NORM = tuple(replace(c, options=(("loss", "mse"), ("optimizer", "sgd"), ("anp_norm", "network")))  # as v1's Appendix C derives it
                     for c in V1_FC3 if c.method in ("anp", "danp"))
WHY_V1 = (*variants(V1_FC1, [c.method for c in V1_FC1], [STANDARD, UNIFORM]),
          *variants(V1_FC3, [c.method for c in V1_FC3 if c.method not in ("np", "anp", "dinp")], [STANDARD, UNIFORM]),
          *variants(V1_FC1 + V1_FC3, ("bp",), [STANDARD], [UNIFORM]),
          *variants(V1_FC3, ("bp",), [GLOROT], [STANDARD, GLOROT]),  # with which its rate is 8 times fc1's 1.02e-3, as the paper's
          *variants(NETWORK_NORM, ("danp",), [STANDARD, UNIFORM]),
          # half and a quarter of the rates that a search finds: they are stable for its two epochs, but not for twenty; of DINP that
          # which one finds from 8.192e-3 on, and half of it
          *variants(V1_FC3, ("np",), [STANDARD, UNIFORM, ("lr", 5.12e-4)]),
          *variants(V1_FC3, ("anp",), [STANDARD, UNIFORM, ("lr", 1.28e-4)]),
          *variants(V1_FC3, ("dinp",), *([STANDARD, UNIFORM, ("lr", lr)] for lr in (0.131072, 0.065536))),
          # what a search finds, half of it, a quarter
          *variants(NETWORK_NORM, ("anp",), *([STANDARD, UNIFORM, ("lr", lr)] for lr in (2.048e-3, 1.024e-3, 5.12e-4))),
          # pixels in [0, 1], at what searches from 4.096e-3 (DBP: 0.131072, DINP: 0.032768, INP: 8.192e-3) on find
          *variants(V1_FC3, ("dnp",), [UNIFORM, ("lr", 0.032768)]),
          *variants(NETWORK_NORM, ("danp",), [UNIFORM, ("lr", 0.032768)]),
          *variants(V1_FC3, ("dinp",), [UNIFORM, ("lr", 0.131072)]),
          *variants(V1_FC3, ("inp",), [UNIFORM, ("lr", 0.016384)]),
          *variants(V1_FC3, ("dbp",), [UNIFORM, ("lr", 0.524288)]))

METHODS_3 = ("--methods", "np", "anp", "inp")
SAMPLES = ("--samples", *map(str, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)), "--repeats", "3")
V1 = ("--loss", "mse", "--anp-norm", "layer")
SIGMA2 = ("--samples", "1", "--repeats", "10", "--sigma2", *(f"1e-{n}" for n in range(10, 0, -1)), "1")

RECIPES = {
    "v2-table3": Recipe("Peak accuracies on CIFAR-10: fully connected and convolutional", "v2, Table 3", FC1 + FC3 + FC6 + FC9 + CONV),
    "v2-table4": Recipe("Peak accuracies on Tiny ImageNet", "v2, Table 4 (Figure 5's runs)", TINY),
    "v2-figure2": Recipe("Angle to BP's update against noise samples", "v2, Figure 2", alignment=METHODS_3 + SAMPLES,
                         figure="plot_alignment"),
    "v2-figure3": Recipe("One layer and three hidden layers on CIFAR-10", "v2, Figure 3", FC1 + FC3),
    "v2-figure4": Recipe("Two noisy passes instead of a clean and a noisy one", "v2, Figure 4",
                         tuple(c for c in FC3 if c.method in ("dnp", "danp")) + NOISY_BASELINE),
    "v2-figure5": Recipe("More noise samples on Tiny ImageNet", "v2, Figure 5", TINY),
    "v2-figure6": Recipe("Angle to BP's update against noisy passes", "v2, Figure 6 (Figure 2's runs)", alignment=METHODS_3 + SAMPLES,
                         figure="plot_alignment"),
    "v2-figure7": Recipe("Angle to BP's update against the noise's variance", "v2, Figure 7", alignment=METHODS_3 + SIGMA2,
                         figure="plot_sigma2"),
    "v2-figure8": Recipe("SARCOS: inverse dynamics of a robot arm", "v2, Figure 8 and Appendix J", SARCOS, epochs=500, search_epochs=500,
                         search_seeds=3),
    "v2-figure9": Recipe("Depth 3, 6 and 9, and a convolutional network, on CIFAR-10", "v2, Figure 9",
                         tuple(c for c in FC3 if c.method in DECORRELATED) + FC6 + FC9 + CONV),
    "v1-table2": Recipe("Learning rates found by doubling", "v1, Table 2", V1_FC1 + V1_FC3 + V1_FC6 + V1_FC9 + V1_CONV,
                        searches_only=True, figure="plot_searches"),
    "v1-table3": Recipe("Peak accuracies with SGD and squared error", "v1, Table 3", V1_FC1 + V1_FC3 + V1_FC6 + V1_FC9 + V1_CONV, seeds=5),
    "v1-figure1": Recipe("Angle to BP's update, one noise sample", "v1, Figure 1",
                         alignment=(*METHODS_3, "--samples", "1", "--repeats", "10", *V1), figure="plot_angles"),
    "v1-figure2": Recipe("One layer on CIFAR-10, SGD", "v1, Figure 2", V1_FC1, seeds=5),
    "v1-figure3": Recipe("Three, six and nine hidden layers on CIFAR-10, a convolutional network on CIFAR-100, SGD", "v1, Figure 3",
                         V1_FC3 + V1_FC6 + V1_FC9 + V1_CONV, seeds=5),
    "v1-figure4": Recipe("Two noisy passes, SGD", "v1, Figure 4",
                         tuple(c for c in V1_FC3 if c.method in ("dnp", "danp")) + V1_NOISY_BASELINE, seeds=5),
    "v1-figure6": Recipe("Angle to BP's update against the noise's variance, squared error", "v1, Figure 6",
                         alignment=(*METHODS_3, *SIGMA2, *V1), figure="plot_sigma2"),
    "v1-figure7": Recipe("SARCOS: inverse dynamics of a robot arm", "v1, Figure 7 (v2, Figure 8's runs)", SARCOS, epochs=500,
                         search_epochs=500, search_seeds=3),
}
RECIPES["why-fc1"] = Recipe("Table 3's fc1 with other readings of the text: biases, Adam's epsilon, initial weights, pixels, rate",
                            "not in the paper", tuple(c for c in FC1 if c.method in ("bp", "np")) + WHY_FC1, seeds=1)
RECIPES["why-fc3"] = Recipe("Table 3's fc3 with other readings of the text: rate, biases, Adam's epsilon, initial weights, slope",
                            "not in the paper", tuple(c for c in FC3 if c.method == "bp") + WHY_FC3, seeds=1)
RECIPES["why-conv"] = Recipe("Table 3's convolutional network with other readings of the text: padding, pixels, biases, rate",
                             "not in the paper", CONV + WHY_CONV, seeds=1)
RECIPES["why-deep"] = Recipe("Table 3's six and nine hidden layers at Table 2's rate, and with other initial weights or another rate",
                             "not in the paper", FC6 + FC9 + WHY_DEEP, epochs=25, seeds=1)
RECIPES["why-tiny"] = Recipe("Table 4 at the paper's α = 1e-3, with He's weights; DANP with Glorot's; BP at the other methods' rate",
                             "not in the paper", WHY_TINY, seeds=1)
RECIPES["why-v1"] = Recipe("v1's Table 3 with other readings of the text: pixels, initial weights, ANP's norm", "not in the paper", WHY_V1,
                           epochs=100, seeds=1)

NOT_RUN = {
    "v2-figure1": "an illustration: see npref/equations.py", "v1-figure5": "an illustration: see npref/equations.py",
    "v2-table1": "the architectures: npref/network.py, `architecture`", "v1-table1": "the architectures: npref/network.py, `architecture`",
    "v2-table2": "the learning rates: npref/config.py, `TABLE_2`",
}

import math

import pytest

pytest.importorskip("matplotlib")
import alignment_plots
import plots
from matplotlib.colors import to_rgb, to_rgba

METHODS = ["np", "danp"]


def measured():
    """A log as examples/alignment.py leaves it, with numbers that tell where they are from."""
    config = {"methods": METHODS, "samples": [1, 10], "sigma2": [1e-6, 1e-3], "epochs": [0, 5], "repeats": 3, "split": True, "arch": "fc3",
              "dataset": "synthetic", "batch_size": 1000}
    rows = [{"method": m, "sigma2": s, "samples": K, "passes": K * (m + 1), "epoch": e, "layer": l,
             "angle": (a := 80 - 5 * m - 20 * (K > 1) + 1000 * s - e - l), "angle_min": a - 1, "angle_max": a + 2, "angle_sem": 0.5,
             "bias2": 0.1 * l - 0.15, "variance": 10.0 * l + m}
            for m in (0, 1) for e in (0, 5) for s in (1e-6, 1e-3) for K in (1, 10) for l in (1, 2, 3)]
    return {"config": config, "environment": {"batch": "20"}, "rows": rows}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, as lists of (title, xlabel, {label: (x, y)}) a panel."""
    figures = []

    class Kept(alignment_plots.Figure):
        def savefig(self, *args, **kwargs):
            figures.append([(ax.get_title(), ax.get_xlabel(), {line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
                                                               for line in ax.lines}) for ax in self.axes])
            super().savefig(*args, **kwargs)

    monkeypatch.setattr(alignment_plots, "Figure", Kept)
    return figures


def test_angles_against_samples_and_passes(tmp_path, drawn):
    alignment_plots.plot_alignment(measured(), tmp_path / "p.png", epoch=5)
    panels = drawn[0]
    assert [p[:2] for p in panels] == [(f"layer {l}", "noise samples K") for l in (1, 2, 3)] + [("", "noisy passes")] * 3
    assert panels[1][2] == {"NP": ([1, 10], [pytest.approx(73.001), pytest.approx(53.001)]),
                            "DANP": ([1, 10], [pytest.approx(68.001), pytest.approx(48.001)])}
    assert panels[4][2]["DANP"][0] == [2, 20]
    alignment_plots.plot_alignment(measured(), tmp_path / "p.png", sigma2=1e-3)
    assert drawn[2][0][2]["NP"][1] == [pytest.approx(80), pytest.approx(60)]


@pytest.mark.parametrize("swept, taken", [([1e-10, 1e-6], 1e-6), ([1e-10, 1e-8], 1e-10)])
def test_the_papers_variance_is_drawn_where_it_was_measured(swept, taken):
    assert {row["sigma2"] for row in alignment_plots._measured({"rows": [{"sigma2": s} for s in swept]}, sigma2=None)} == {taken}


def test_angles_as_bars(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(alignment_plots, "save", lambda figure, path: figures.append(figure))
    alignment_plots.plot_angles(measured(), tmp_path / "p.png", epoch=5, samples=10)
    left, right = figures[0].axes
    rows = [row for row in measured()["rows"] if (row["epoch"], row["samples"], row["sigma2"]) == (5, 10, 1e-6)]
    for m, (bars, side) in enumerate([(left.containers[1], -1), (left.containers[3], 1)]):  # each after its error bars
        assert [bar.get_height() for bar in bars] == [row["angle"] for row in rows if row["method"] == m]
        assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == [pytest.approx(l + 0.2 * side) for l in (1, 2, 3)]
        (_, y0), (_, y1) = left.containers[2 * m].lines[2][0].get_segments()[0]
        assert y1 - y0 == pytest.approx(2 * 0.5) and (y0 + y1) / 2 == pytest.approx(bars[0].get_height())
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["NP", "DANP"]
    assert [bar.get_height() for bars in right.containers for bar in bars] == [11, 21]  # with the clean pass
    assert figures[0].get_suptitle() == "fc3, synthetic, epoch 5, σ² = 1e-06, K = 10, B = 20, 3 repeats"


@pytest.mark.parametrize("options, batch, said", [
    ({}, {}, "B = 1000"),  # an older log, without
    ({"loss": "cce", "noise": "gaussian", "anp_norm": "network"}, {"batch": "20"}, "B = 20"),
    ({"loss": "mse", "noise": "rademacher", "anp_norm": "layer"}, {"batch": "20"}, "loss mse, rademacher noise, norm of the layer, B = 20"),
])
def test_titles_say_what_is_not_the_default(undrawn, options, batch, said):
    log = measured()
    alignment_plots.plot_sigma2({**log, "config": log["config"] | options, "environment": batch}, "p.png")
    assert undrawn[0].get_suptitle() == f"fc3, synthetic, epoch 0, K = 1, {said}, 3 repeats"


def test_angles_against_sigma2_and_epochs(tmp_path, drawn):
    alignment_plots.plot_sigma2(measured(), tmp_path / "p.png")
    assert [(p[0], p[2]["NP"]) for p in drawn[0]] == [("layer 2", ([1e-6, 1e-3], [pytest.approx(78.001), pytest.approx(79)]))]
    alignment_plots.plot_sigma2(measured(), tmp_path / "p.png", layer=None, epoch=5, samples=10)
    assert [p[0] for p in drawn[2]] == ["layer 1", "layer 2", "layer 3"] and drawn[2][0][2]["NP"][1][1] == pytest.approx(55)
    alignment_plots.plot_sigma2(measured(), tmp_path / "p.png", layer=9)
    assert [p[0] for p in drawn[4]] == ["layer 3"]
    alignment_plots.plot_alignment_training(measured(), tmp_path / "p.png")
    assert [p[0] for p in drawn[6]] == ["layer 1", "layer 2", "layer 3"]
    assert drawn[6][0][2]["DANP"] == ([0, 5], [pytest.approx(54.001), pytest.approx(49.001)])


def test_bias_and_variance(tmp_path, drawn):
    alignment_plots.plot_split(measured(), tmp_path / "p.png")
    (_, _, bias2), (title, _, variance) = drawn[0]
    assert bias2["NP"] == ([1, 2, 3], [pytest.approx(v) for v in (0.05, 0.05, 0.15)])  # the first is below 0, and crossed
    assert [x for label, (x, _) in bias2.items() if label not in ("NP", "DANP")] == [[1], [1]]
    assert title.startswith("variance") and variance["DANP"] == ([1, 2, 3], [11, 21, 31])


@pytest.mark.parametrize("draw", [alignment_plots.plot_alignment, alignment_plots.plot_sigma2, alignment_plots.plot_alignment_training,
                                  alignment_plots.plot_split, alignment_plots.plot_angles])
def test_a_png_and_an_svg_that_depend_on_nothing_but_the_numbers(tmp_path, draw):
    for name in "ab":
        assert draw(measured(), tmp_path / f"{name}.png") == tmp_path / f"{name}.png"
    for kind, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        one, two = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
        assert one == two and one.startswith(magic) and b"<dc:date>" not in one


@pytest.fixture
def undrawn(monkeypatch):
    """The figures that would be saved, each twice where an SVG is beside the PNG."""
    figures = []
    monkeypatch.setattr(plots, "_write", lambda figure, path, kind, **options: figures.append(figure))
    return figures


def band_of(collection):
    """Where a band is at each x, {x: (least, greatest)}, and its colour."""
    xy = collection.get_paths()[0].vertices
    return {x: (min(ys), max(ys)) for x in {*xy[:, 0]} for ys in [[y for at, y in xy if at == x]]}, collection.get_facecolor()[0]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


ANGLE = "angle to BP's update (degrees)"


@pytest.mark.parametrize("draw, options, fixed, xlabels, ylabels, xscale", [
    (alignment_plots.plot_alignment, {"epoch": 0}, "epoch 0, σ² = 1e-06", ["noise samples K"] * 3 + ["noisy passes"] * 3,
     [ANGLE, "", ""] * 2, "log"),
    (alignment_plots.plot_sigma2, {"layer": None, "samples": 10}, "epoch 0, K = 10", ["noise variance σ²"] * 3, [ANGLE, "", ""], "log"),
    (alignment_plots.plot_alignment_training, {"sigma2": 1e-3}, "σ² = 0.001, K = 10", ["epoch"] * 3, [ANGLE, "", ""], "linear"),
    (alignment_plots.plot_split, {"epoch": 5}, "epoch 5, σ² = 1e-06, K = 1", ["layer"] * 2, ["", ""], "linear"),
    (alignment_plots.plot_angles, {"samples": 10}, "epoch 0, σ² = 1e-06, K = 10", ["layer", ""], [ANGLE, "forward passes an update"],
     "linear"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_what_pictures_of_angles_say(undrawn, draw, options, fixed, xlabels, ylabels, xscale):
    draw(measured(), "p.png", **options)
    axes = undrawn[0].axes
    assert undrawn[0].get_suptitle() == f"fc3, synthetic, {fixed}, B = 20, 3 repeats"
    assert [a.get_xlabel() for a in axes] == xlabels and [a.get_ylabel() for a in axes] == ylabels
    assert {a.get_xscale() for a in axes} == {xscale}
    assert [legend_of(a) for a in axes if a.get_legend() is not None] == [["NP", "DANP"]]
    if draw is not alignment_plots.plot_angles:
        assert len({a.get_ylim() for a in axes}) == 1


def test_lines_of_angles_have_their_methods_look_and_a_band_from_least_to_greatest(undrawn):
    alignment_plots.plot_alignment_training(measured(), "p.png")
    for layer, axes in enumerate(undrawn[0].axes, start=1):
        for m, (method, line, band) in enumerate(zip(METHODS, axes.lines, axes.collections)):
            style, angle = plots.line_style(method), 60.001 - 5 * m - layer
            assert list(line.get_ydata()) == pytest.approx([angle, angle - 5])
            assert (line.get_color(), line.get_marker(), line.get_linestyle()) == (style["color"], style["marker"], style["ls"])
            where, colour = band_of(band)
            assert where == {e: pytest.approx((angle - e - 1, angle - e + 2)) for e in (0, 5)}
            assert tuple(colour) == to_rgba(style["color"], 0.15)
        assert list(axes.get_xticks()) == [0, 5]


def test_the_papers_flat_range_is_shaded(undrawn):
    alignment_plots.plot_sigma2(measured(), "p.png")
    (span,) = undrawn[0].axes[0].patches
    xs = span.get_patch_transform().transform(span.get_path().vertices)[:, 0]
    assert (min(xs), max(xs)) == pytest.approx((1e-6, 1e-4))


def test_bars_have_their_rules_colour_and_hatch(undrawn):
    alignment_plots.plot_angles(measured(), "p.png")
    left, right = undrawn[0].axes
    for bars in (left.containers[1::2], right.containers):  # left, each after its error bars
        assert [{bar.get_facecolor() for bar in group} for group in bars] == [{to_rgba(plots.COLOURS[rule])} for rule in ("np", "anp")]
        assert [{bar.get_edgecolor() for bar in group} for group in bars] == [{to_rgba("white")}, {to_rgba("black")}]  # plain, decorrelated
        assert [group[0].get_hatch() or "" for group in bars] == [alignment_plots.HATCHES[rule] for rule in ("np", "anp")]
    assert list(left.get_xticks()) == [1, 2, 3] and [text.get_text() for text in right.get_xticklabels()] == ["NP", "DANP"]
    assert len({*alignment_plots.HATCHES.values()}) == 3


def test_a_negative_bias_is_crossed_at_its_size(undrawn):
    alignment_plots.plot_split(measured(), "p.png")
    bias2, variance = undrawn[0].axes
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in bias2.lines if line.get_marker() == "x"] == [
        ([1], [pytest.approx(0.05)])] * 2
    assert [axes.get_title() for axes in (bias2, variance)] == ["bias² / ‖g‖² (cross: below 0)", "variance / ‖g‖²"]
    assert {axes.get_yscale() for axes in (bias2, variance)} == {"log"} and list(variance.get_xticks()) == [1, 2, 3]


def test_what_was_not_measured_is_not_drawn(tmp_path):
    with pytest.raises(ValueError, match="epoch 7 was not measured: expected one of 0, 5"):
        alignment_plots.plot_alignment(measured(), tmp_path / "p.png", epoch=7)


def test_lines_can_be_told_apart_without_colour():
    styles = [plots.line_style(d + rule) for d in ("", "d") for rule in ("np", "inp", "anp")]
    assert len({(style["ls"], style["marker"]) for style in styles}) == 6
    assert all((style["mfc"] == "white") == (style["ls"] == "--") for style in styles)
    assert len({*plots.COLOURS.values()}) == len({*plots.MARKERS.values()}) == 4
    assert all(style["color"] == plots.COLOURS[rule] for style, rule in zip(styles, ["np", "inp", "anp"] * 2))


def test_a_method_of_ones_own_has_a_look_too(undrawn, monkeypatch):
    monkeypatch.setattr("npref.rules.METHODS", (*METHODS, "wp", "dwp"))
    log = measured()
    log["config"] |= {"methods": ["wp", "dwp"]}
    alignment_plots.plot_alignment_training(log, "p.png")
    alignment_plots.plot_angles(log, "p.png")
    lines, bars = undrawn[0].axes[0].lines, undrawn[-1].axes[0].containers[1::2]
    assert {line.get_color() for line in lines} == {"C4"} and [line.get_linestyle() for line in lines] == ["--", "-"]
    assert {(bar.get_hatch(), bar.get_facecolor()) for group in bars for bar in group} == {("xx", to_rgba("C4"))}
    assert "C4" not in plots.COLOURS.values() and "P" not in plots.MARKERS.values()


@pytest.fixture
def figures(monkeypatch):
    """The figures that plots.py saves."""
    figures = []

    class Kept(plots.Figure):
        def savefig(self, *args, **kwargs):
            figures.append(self)
            super().savefig(*args, **kwargs)

    monkeypatch.setattr(plots, "Figure", Kept)
    return figures


def lines_of(axes):
    """{label: (x, y)}"""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_train_and_test_curves(tmp_path, figures):
    two_seeds, one = [([10, 20, 30], [5, 15]), ([30, 40], [15, 25, 99])], [([1], [2])]
    lines = [("DNP", "dnp", 1.0, two_seeds), ("DNP, biases", "dnp", 1.0, one), ("DNP, glorot", "dnp", 1.0, one), ("ANP", "anp", 1.0, one),
             ("DNP, noisy baseline", "dnp", "noisy", one)]
    plots.plot_curves([("fc1", "accuracy", lines), ("sarcos", "loss", [("BP", "bp", 1.0, two_seeds)])], tmp_path / "p.png")
    train, test, loss, _ = figures[0].axes
    assert [axes.get_title() for axes in figures[0].axes] == ["fc1: train", "fc1: test", "sarcos: train", "sarcos: test"]
    for axes, mean, low in ((train, [20, 30], [10, 20]), (test, [10, 20], [5, 15])):
        drawn = {line.get_label(): line for line in axes.lines}
        assert list(drawn["DNP"].get_xdata()) == [1, 2] and list(drawn["DNP"].get_ydata()) == mean
        band = axes.collections[0].get_paths()[0].vertices
        assert sorted({y for x, y in band if x == 1}) == [low[0], 2 * mean[0] - low[0]]
        assert axes.get_xlim()[0] == 0 and axes.get_xlabel() == "epoch" and "accuracy (%), 1 to 2 seeds" == axes.get_ylabel()
        assert len({(line.get_marker(), line.get_color()) for line in drawn.values()}) == len(lines)
        assert len({line.get_marker() for label, line in drawn.items() if "DNP" in label}) >= 3
        assert drawn["DNP, noisy baseline"].get_linestyle() == ":" and drawn["DNP"].get_linestyle() == "-"
    assert loss.get_yscale() == "log" and train.get_yscale() == "linear" and loss.get_ylabel() == "loss, 2 seeds"


@pytest.mark.parametrize("count", [1, 13, 40])
def test_a_long_legend_fits(tmp_path, figures, count):
    words = "standard inputs, padding 1, uniform weights, lr 0.0005" if count > 5 else "variant"
    lines = [(f"NP, {words} {i}", "np", 1.0, [([1, 2], [3, 4])]) for i in range(count)]
    plots.plot_curves([("fc1", "accuracy", lines), ("fc3", "accuracy", lines[:1])], tmp_path / "p.png")
    figure = figures[0]
    figure.set_dpi(120)  # as it was drawn with: letters are not as wide at another
    for axes in figure.axes[1::2]:
        legend = axes.get_legend().get_window_extent()
        assert 0 <= legend.y0 and legend.y1 <= figure.bbox.height and legend.x1 <= figure.bbox.width
    assert all(axes.get_window_extent().width > 2.5 * figure.dpi for axes in figure.axes)
    assert all(axes.get_window_extent().height > 0.5 * 3.2 * figure.dpi for axes in figure.axes)


def test_a_run_has_a_panel_for_each_of_its_quantities(tmp_path, figures):
    names = ["train_loss", "test_loss", "eval_train_loss", "train_accuracy", "test_accuracy", "eval_train_accuracy",
             "correlation", "correlation_0", "correlation_1"]
    rows = [{"epoch": epoch} | {name: i + epoch / 10 for i, name in enumerate(names)} for epoch in (1, 2)]
    config = {"method": "danp", "arch": "fc1", "dataset": "synthetic", "lr": 0.001, "seed": 7}
    of = lambda name: ([1, 2], [row[name] for row in rows])  # noqa: E731
    assert plots.plot_run({"config": config, "environment": {}, "rows": rows}, tmp_path / "p.png") == tmp_path / "p.png"
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["accuracy", "loss per sample", "mean squared correlation"]
    for axes, quantity in zip(figures[0].axes, ("accuracy", "loss")):
        assert lines_of(axes) == {"train, running mean": of(f"train_{quantity}"), "train, fixed weights": of(f"eval_train_{quantity}"),
                                  "test": of(f"test_{quantity}")}
        assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines_of(axes))
    assert lines_of(figures[0].axes[2]) == {"$R_0$": of("correlation_0"), "$R_1$": of("correlation_1")}
    assert figures[0].axes[2].get_yscale() == "log"
    assert figures[0].get_suptitle() == "danp on fc1, synthetic, lr 0.001, seed 7"
    plain = [{name: row[name] for name in ("epoch", "train_loss", "test_loss")} for row in rows]  # real targets, no R
    own = {"rule": "mine.central_differences", "network": "Network(...)"}
    plots.plot_run({"config": config, "environment": own, "rows": plain}, tmp_path / "p.png")
    assert figures[1].get_suptitle() == "central_differences on a network of one's own, synthetic, lr 0.001, seed 7"
    assert [(axes.get_ylabel(), lines_of(axes)) for axes in figures[1].axes] == [
        ("loss per sample", {"train, running mean": of("train_loss"), "test": of("test_loss")})]


def test_searches_have_a_panel_a_place_and_a_star_at_the_best_rate(tmp_path, figures):
    def search(method, arch, losses):
        rows = [{"lr": 10.0**i, "train_loss": loss} for i, loss in enumerate(losses)]
        return {"config": {"method": method, "arch": arch, "dataset": "cifar10"}, "rows": rows}

    logs = {"a": search("np", "fc1", [3, 2, 4]), "b": search("dnp", "fc3", [3, 2, 1, math.nan]), "c": search("bp", "fc1", [5, 6])}
    plots.plot_searches(logs, tmp_path / "p.png")
    fc1, fc3 = figures[0].axes
    assert [axes.get_title() for axes in (fc1, fc3)] == ["fc1, cifar10", "fc3, cifar10"] and fc1.get_xscale() == fc1.get_yscale() == "log"
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in fc1.lines] == [
        ([1, 10, 100], [3, 2, 4]), ([10], [2]), ([1, 10], [5, 6]), ([1], [5])]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in fc3.lines] == [([1, 10, 100], [3, 2, 1]), ([100], [1])]
    assert [line.get_marker() for line in fc1.lines] == ["s", "*", "D", "*"]
    assert [text.get_text() for text in fc1.get_legend().get_texts()] == ["NP", "BP"]
    plots.plot_searches({"b": logs["b"]}, tmp_path / "q.png")
    assert [lines_of(axes) for axes in figures[-1].axes] == [lines_of(fc3)] and (tmp_path / "q.png").exists()
    assert 4 < fc1.get_ylim()[1] < 50  # all that there is
    plots.plot_searches({"a": search("np", "fc1", [3, 2, 1e60, math.nan]), "b": search("bp", "fc1", [5, 1, 2])}, tmp_path / "q.png")
    assert figures[-1].axes[0].get_ylim() == pytest.approx((0.8, 50))  # but not what has exploded


def test_a_panel_of_the_scaling_changes_one_thing(tmp_path, figures):
    rows = [{"method": method, "samples": K, "arch": arch, "batch_size": B, "step": K * B / 1000 + int(arch[2:]), "floor": K * B / 2000}
            for method in ("danp", "bp") for K in (10, 1) for arch in ("fc9", "fc3") for B in (1000, 500)]
    plots.plot_scaling(rows, tmp_path / "p.png")
    expected = [("noise samples K", [1, 10], [4, 13], [0.5, 5]), ("hidden layers", [3, 9], [4, 10], [0.5, 0.5]),
                ("batch size", [500, 1000], [3.5, 4], [0.25, 0.5])]
    for axes, (label, x, step, floor) in zip(figures[0].axes, expected):
        assert axes.get_xlabel() == label and axes.get_xlim()[0] == axes.get_ylim()[0] == 0
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["DANP", "BP"]
        for points, line, dashes in (axes.lines[:3], axes.lines[3:]):
            assert all(list(drawn.get_xdata()) == x for drawn in (points, line, dashes))
            assert list(points.get_ydata()) == list(line.get_ydata()) == step and list(dashes.get_ydata()) == floor
            assert (points.get_linestyle(), line.get_marker(), dashes.get_marker()) == ("None", "None", "_")
            assert points.get_color() == line.get_color() == dashes.get_color()


def test_a_curve_is_the_mean_of_its_seeds_in_a_band_of_its_colour(undrawn):
    lines = [("DNP", "dnp", 1.0, [([y], [y + 1]) for y in (0, 3, 9)]), ("ANP, α 2", "anp", 0.25, [([50], [60])])]
    plots.plot_curves([("fc1", "accuracy", lines)], "p.png")
    train, test = undrawn[0].axes
    for axes, more in ((train, 0), (test, 1)):
        for line, band, colour, mean, extent in zip(axes.lines, axes.collections, (plots.COLOURS["np"], (0.78, 0.87, 0.93)),
                                                    (4 + more, 50 + 10 * more), ((more, 9 + more), (50 + 10 * more,) * 2)):
            assert list(line.get_ydata()) == [mean] and to_rgb(line.get_color()) == pytest.approx(to_rgb(colour), abs=0.01)
            assert band_of(band)[0] == {1: extent} and tuple(band_of(band)[1]) == pytest.approx(to_rgba(line.get_color(), 0.2))
        assert [line.get_marker() for line in axes.lines] == ["s", "o"]  # another method, no variant
    assert train.get_ylim() == test.get_ylim()
    assert train.get_legend() is None and legend_of(test) == ["DNP", "ANP, α 2"]


def test_a_run_tells_train_from_test_and_accuracy_from_loss(undrawn):
    rows = [{"epoch": 1, "correlation": 0.1} | {f"{part}_{quantity}": 0.25 for part in ("train", "test", "eval_train")
                                                for quantity in ("accuracy", "loss")} | {f"correlation_{l}": 0.1 for l in range(3)}]
    config = {"method": "danp", "arch": "fc1", "dataset": "synthetic", "lr": 0.001, "seed": 7}
    plots.plot_run({"config": config, "environment": {}, "rows": rows}, "p.png")
    accuracy, loss, correlation = undrawn[0].axes
    assert accuracy.yaxis.get_major_formatter()(0.25) == "25%" and "%" not in loss.yaxis.get_major_formatter()(0.25)
    for axes in undrawn[0].axes:
        assert axes.get_xlabel() == "epoch" and len({line.get_color() for line in axes.lines}) == 3
    assert len({line.get_linestyle() for line in loss.lines}) == 3
    assert [to_rgb(line.get_color()) == (0, 0, 0) for line in correlation.lines] == [True, False, False]


def test_the_star_of_a_search_has_its_lines_colour(undrawn):
    rows = [{"lr": 0.1, "train_loss": 3.0}, {"lr": 0.2, "train_loss": 2.0}, {"lr": 0.4, "train_loss": 1e4}]
    plots.plot_searches({m: {"config": {"method": m, "arch": "fc1", "dataset": "cifar10"}, "rows": rows} for m in ("np", "anp")}, "p.png")
    (axes,) = undrawn[0].axes
    assert [line.get_color() for line in axes.lines] == [plots.COLOURS[rule] for rule in ("np", "np", "anp", "anp")]
    assert axes.get_xlabel() == "learning rate (star: the best)" and axes.get_ylabel() == "training loss"
    assert axes.get_ylim() == pytest.approx((1.6, 30))


def test_what_is_no_picture_is_not_replaced(tmp_path):
    """Neither by a picture nor by the SVG beside it, and then nothing is written; pictures are."""
    from matplotlib.figure import Figure

    for name, other in (("p.png", "p.svg"), ("p.svg", "p.png")):
        (tmp_path / name).write_text("mine")
        with pytest.raises(FileExistsError, match=f"{name} is there already, and no picture: move it, or choose another folder"):
            plots.save(Figure(), tmp_path / "p.png")
        assert (tmp_path / name).read_text() == "mine" and not (tmp_path / other).exists()
        (tmp_path / name).unlink()
    for _ in range(2):
        plots.save(Figure(), tmp_path / "p.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png", "p.svg"]


def test_the_scaling_tells_methods_apart(undrawn):
    rows = [{"method": m, "samples": 1, "arch": "fc3", "batch_size": 1000, "step": 2.0, "floor": 1.0} for m in ("np", "anp", "danp")]
    plots.plot_scaling(rows, "p.png")
    for axes in undrawn[0].axes:
        points = axes.lines[::3]
        assert [line.get_color() for line in points] == [plots.COLOURS[rule] for rule in ("np", "anp", "anp")]
        assert [line.get_marker() for line in points] == ["s", "s", "o"]
        assert axes.get_ylabel() == "seconds a step (dash: products alone)"

"""The notebook runs, its assertions hold, and the outputs in it are those of its cells."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO

import pytest
from conftest import ROOT

from npref import equations

matplotlib = pytest.importorskip("matplotlib")
NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"


def run(monkeypatch, change=lambda source: source):
    """What every code cell says, its source changed, and what it said when the notebook was saved: a list of pairs."""
    matplotlib.use("Agg")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: matplotlib.pyplot.close("all"))
    namespace, pairs = {}, []
    for cell in json.loads((ROOT / "examples/equations.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            said = StringIO()
            with redirect_stdout(said), matplotlib.rc_context():
                exec(change("".join(cell["source"])), namespace)
            pairs.append((said.getvalue(), "".join(text for output in cell["outputs"] for text in output.get("text", ()))))
    return pairs


def test_it_says_what_it_shows(monkeypatch):
    pairs = run(monkeypatch)
    assert len(pairs) >= 10
    for now, saved in pairs:
        assert re.sub(NUMBER, "0", now) == re.sub(NUMBER, "0", saved)
        for number, as_saved in zip(re.findall(NUMBER, now), re.findall(NUMBER, saved)):
            digits, _, exponent = as_saved.partition("e")  # elsewhere the last digit may be rounded otherwise
            assert abs(float(number) - float(as_saved)) < 1.01 * 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2])), (now, saved)


@pytest.mark.parametrize("seed, units, activation", [
    (1, [12, 24, 16, 20, 16, 10], "tanh"), (0, [12, 5], "tanh"), (6, [12, 48, 3], "leaky_relu"),
])
def test_all_that_is_asserted_holds_for_other_layers(monkeypatch, seed, units, activation):
    """But for the last line, whether decorrelated forms win with that network."""
    changes = {"default_rng(1)": f"default_rng({seed})", "units = [12, 16, 16, 16, 5]": f"units = {units}",
               '["tanh"] *': f'["{activation}"] *', "assert all(last[": "(last["}
    left = set(changes)

    def other(source):
        for old in [old for old in left if old in source]:
            source = source.replace(old, changes[old])
            left.remove(old)
        return source

    run(monkeypatch, other)
    assert not left


@pytest.mark.parametrize("name", ["bp_update", "np_update", "inp_update", "anp_update", "decorrelation_update"])
def test_its_assertions_see_a_flipped_sign(monkeypatch, name):
    right = getattr(equations, name)
    monkeypatch.setattr(equations, name, lambda *arguments, **more: -right(*arguments, **more))
    with pytest.raises(AssertionError):
        run(monkeypatch)

"""The example adapters, where their libraries are installed: every case they are given is right, in both dtypes."""

import importlib.util
from pathlib import Path

import pytest

from npref import METHODS, oracle

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "data/oracle/small.h5"
NETWORKS = ("dense2-bias", "conv-dense-bias")
OTHERS = ["hand/*", "danp/conv-stride-bias-k3", "danp/mse", "danp/sgd", "danp/adam-eps-hat", "danp/layer-norm", "np/step", "inp/kinks",
          "*np/noisy-baseline-dense2", "inp/batch-of-1"]
CASES = [[f"{method}/{network}" + "-k3" * ("bp" not in method) for network in NETWORKS] for method in METHODS] + [[name] for name in OTHERS]


def adapter(library):
    needs = "torch" if library == "torch" else "jax"
    pytest.importorskip(needs, reason=f'needs {needs}: pip install -e ".[adapters]"')
    spec = importlib.util.spec_from_file_location(f"{library}_adapter", ROOT / f"examples/adapters/{library}_adapter.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if library == "torch":
        module.torch.set_num_threads(1)  # the tests run in parallel
    return module.adapter


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("cases", CASES, ids=lambda cases: cases[0])
def test_adapters_pass(library, cases):
    results = list(oracle.check(SMALL, adapter(library), cases=cases))
    assert len(results) >= 2 and all(not r.wrong and not r.skipped and r.checked >= 5 for r in results), results


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_adapters_pass_cases_beyond_the_committed_ones(library, tmp_path):
    passes = adapter(library)
    oracle.write(tmp_path / "v.h5", ["bp/conv-remainder-bias", "danp/conv-remainder-bias", "*/output-tanh"])
    results = list(oracle.check(tmp_path / "v.h5", passes))
    assert len(results) == 8 and all(not r.wrong and not r.skipped and r.checked >= 5 for r in results), results


def test_adapters_are_short_and_use_nothing_of_npref():
    for path in (ROOT / "examples/adapters").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 120 and "import npref" not in text and "from npref" not in text

"""The committed golden vectors, as the oracle's tests take them, and adapters made of npref's own answer."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from npref import oracle
from npref.oracle import checker as checking
from npref.oracle.conventions import CONVENTIONS
from npref.oracle.files import case_list, list_cases, one_case

SMALL = Path(__file__).resolve().parents[1] / "data/oracle/small.h5"
BUILT_IN = {case.name for case, *_ in case_list()}
NAMES = [name for name, _ in list_cases(SMALL)]


@cache
def golden(name):
    """One of the committed cases: (Case, outputs)."""
    return one_case(SMALL, name)


def judged(name, adapter, convention="paper", dtype="float64"):
    case, outputs = golden(name)
    c = CONVENTIONS[convention]
    if convention != "paper":
        outputs = checking.expected(case, c)
    return oracle.compare(case.cast(dtype), c, outputs, adapter)


def given(**other):
    """npref's own adapter, given other inputs: name = function of the case."""
    return lambda case: oracle.self(replace(case, **{name: f(case) for name, f in other.items()}))


def updates_only(adapter):
    return lambda case: {name: a for name, a in adapter(case).items() if name in ("dW", "db")}


def first_sample(case):
    return tuple(np.repeat(e[:, :1], len(case.x), axis=1) for e in case.eps)

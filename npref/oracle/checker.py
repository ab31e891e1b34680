"""Compare an adapter's numbers with golden vectors."""

import importlib
import os
import sysconfig
import traceback
from dataclasses import dataclass, replace
from inspect import iscoroutine
from pathlib import Path

import numpy as np

from ..backend import BACKENDS, to_host
from ..layers import Conv
from .conventions import CONVENTIONS, Convention
from .files import flat, read
from .hints import hint, shape_hint
from .reference import STEPS, Kink, reference

TOLERANCE = 8  # c in |out - ref| <= c·eps·scale; npref itself stays below 3
DTYPES = ("float64", "float32")
NOT_THE_USERS = sysconfig.get_path("stdlib") + os.sep, str(Path(__file__).resolve().parents[1]) + os.sep  # code in these folders
LONG = 500  # characters of an exception's text, beyond which it is cut short
REASONED = 10  # so many differences are explained by recomputing the reference in every way; others in the ways that have fitted
QUANTITIES = ("x_star", "a", "x", "loss", "g", "a_tilde", "noisy_loss", "dL", "da", "dW", "db", "dR",
              *(f"after_{n}/{name}" for n in STEPS for name in ("W", "b", "m_W", "v_W", "m_b", "v_b", "R")))


class CannotRun(Exception):
    """The check itself could not be made; the message says why, and what to do."""


@dataclass(frozen=True)
class Result:
    """One case in one dtype. checked: arrays compared; missing: the kinds of arrays that the adapter did not return, or not for all layers;
    worst: the largest error in tolerances, and where; wrong: the first quantity beyond its tolerance in the order of the computation, with
    what is known of it; skipped: why nothing was compared."""

    name: str
    dtype: str
    checked: int = 0
    missing: tuple = ()
    worst: float = 0.0
    worst_at: str = ""
    wrong: str = ""
    details: str = ""
    hint: str = ""
    skipped: str = ""


def load_adapter(name):
    """"module:object" -> the object. Raises CannotRun where there is no such thing."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise CannotRun(f"an adapter is named module:object, such as npref.oracle:self, got {name!r}")
    if module.startswith(".") or module.endswith(".py") or set("/\\") & set(module):
        bare = Path(module).name.removesuffix(".py").lstrip(".")
        raise CannotRun(f"expected a module's name, got a path: in the folder {Path(module).parent} it is --adapter {bare}:{attribute}")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever somebody's module raises
        raise CannotRun(f"cannot import {module}: {_where(error)}") from error
    if not hasattr(found, attribute):
        raise CannotRun(f"module {module} has no {attribute}")
    return _function(getattr(found, attribute), name)


def _function(adapter, name):
    if not callable(adapter):
        raise CannotRun(f"{name} must be a function of a case, got {type(adapter).__name__}")
    return adapter


def check(path, adapter, convention="paper", cases="*", dtypes=DTYPES):
    """Compare `adapter`, a function of a Case, with the file's cases: an iterator of `Result`. convention: a name, or a `Convention`.

    Raises CannotRun for a wrong argument and, as the iterator comes to it, where the adapter raises or returns something that is not a
    result; and what `files.read` raises.
    """
    if not isinstance(convention, Convention) and convention not in CONVENTIONS:
        raise CannotRun(f"unknown convention {convention!r}: expected one of {', '.join(CONVENTIONS)}")
    dtypes = (dtypes,) if isinstance(dtypes, str) else tuple(dtypes)
    if not dtypes or not set(dtypes) <= set(DTYPES):
        raise CannotRun(f"dtypes must be among {' and '.join(DTYPES)}, got {dtypes}")
    c = convention if isinstance(convention, Convention) else CONVENTIONS[convention]
    return _results(read(path, cases), _function(adapter, "an adapter"), c, dtypes)


def _results(cases, adapter, c, dtypes):
    reasoned, fitted = 0, set()
    for case, outputs in cases:
        reason = _outside(case, c)
        if not reason and c != CONVENTIONS["paper"]:
            outputs = expected(case, c)
            reason = "" if outputs else "by this convention a unit comes too close to its kink"
        for dtype in dtypes:
            if reason:
                yield Result(case.name, dtype, skipped=reason)
                continue
            result = compare(case.cast(dtype), c, outputs, adapter, reasoned < REASONED, fitted)
            reasoned += bool(result.wrong)
            fitted.add(result.hint)
            yield result


def expected(case, convention):
    """The reference by a convention, {quantity: (value, scale)}: after one step only, or nothing at all, where a kink comes too close."""
    for steps in (STEPS, STEPS[:1]):
        try:
            return {name: (a.value, a.scale) for name, a in reference(case, convention, steps).items()}
        except Kink:
            continue
    return {}


def _outside(case, c):
    """Why a case is not one of a convention's, or ""."""
    if case.rule not in c.rules:
        return f"this convention has no {case.rule}"
    if not c.conv and any(isinstance(q, Conv) for q in case.layers):
        return "this convention has dense layers only"
    if not c.samples and case.eps is not None and len(case.eps[0]) > 1:
        return "this convention has one noise sample"
    return ""


def compare(case, convention, outputs, adapter, rerun=True, fitted=()):
    """One case's `Result`; `case` in the dtype to be tested, `outputs` {quantity: (value, scale)}. rerun, fitted: as for `hints.hint`."""
    try:
        found = _call(adapter, case)
    except NotImplementedError as error:  # a library's, too: hence the place
        return Result(case.name, case.dtype, skipped=f"the adapter does not support it ({_where(error)})")
    if found is None:
        return Result(case.name, case.dtype, skipped="the adapter does not support it")
    found = {name: a for name, a in _arrays(case, found, outputs).items() if name in outputs}
    if not found:
        raise CannotRun(f"{case.name}: the adapter returned nothing that can be checked; expected any of {', '.join(_kinds(outputs))}, "
                        "or None for a case that it does not support")
    missing = tuple(_kinds(name for name in outputs if name not in found))
    eps, result, right = np.finfo(case.dtype).eps, Result(case.name, case.dtype, len(found), missing), {}
    for name in sorted(found, key=_stage(outputs)):
        value, scale = outputs[name]
        out, tolerance = found[name], TOLERANCE * eps * scale
        if out.shape != value.shape:
            return replace(result, worst=np.inf, worst_at=name, wrong=name, details=f"shape {out.shape}, expected {value.shape}",
                           hint=shape_hint(out, value, tolerance))
        with np.errstate(all="ignore"):
            error = np.where(out == value, 0, abs(out - value) / tolerance)
        error = np.where(np.isnan(error), np.inf, error)
        at = np.unravel_index(np.argmax(error), error.shape)
        if error[at] > result.worst:
            result = replace(result, worst=float(error[at]), worst_at=name)
        if error[at] > 1:
            digits = 9 if f"{out[at]:.9g}" != f"{value[at]:.9g}" else 17
            details = (f"[{', '.join(map(str, at))}] is {out[at]:.{digits}g}, expected {value[at]:.{digits}g}; "
                       f"{np.sum(error > 1)} of {error.size} numbers are wrong")
            if not np.isfinite(out).all():
                why = "not finite"
            elif _is_later(name, out, outputs, eps):
                why = "the number after ten steps: copy what later steps change in place"
            else:
                why = hint(case, convention, name, out, value, tolerance, rerun, right, fitted)
            return replace(result, wrong=name, details=details, hint=why)
        right[name] = out, tolerance
    return result


def _is_later(name, out, outputs, eps):
    """Whether `out`, returned as a number after one step, is that after ten."""
    later = name.replace("after_1/", "after_10/")
    if not name.startswith("after_1/") or later not in outputs:
        return False
    value, scale = outputs[later]
    return bool(np.all(abs(out - value) <= TOLERANCE * eps * scale))


def _stage(outputs):
    """The order in which quantities are judged, as a sorting key: the computation's, with Adam's moments before what they change."""
    place = {name: n for n, name in enumerate(outputs)}

    def key(name):
        after = name.partition("/")[0]
        return {"after_1": 1, "after_10": 2}.get(after, 0), "/m_" not in name and "/v_" not in name, place[name]

    return key


def _call(adapter, case):
    try:
        return adapter(case.cast(case.dtype))  # a copy: it may change the arrays in place
    except (NotImplementedError, KeyboardInterrupt):
        raise
    except BaseException as error:  # as SystemExit is, and what pytest.skip raises
        raise CannotRun(f"{case.name} in {case.dtype}: the adapter raised {_where(error)}") from error


def _arrays(case, found, outputs):
    if not isinstance(found, dict):
        if iscoroutine(found):
            found.close()  # or Python warns that nobody has waited for it
        raise CannotRun(f"{case.name}: an adapter returns a dict of arrays, or None if it does not support a case, "
                        f"got {type(found).__name__}")
    arrays = {}
    for name, a in flat(found).items():
        kind = _kind(str(name))
        if kind not in QUANTITIES:
            raise CannotRun(f"{case.name}: the adapter returned {name!r}; expected {', '.join(_kinds(outputs))}")
        if kind in _kinds(outputs) and name not in outputs:
            form = f"a list of {len(case.layers)} arrays, one a layer" if kind not in outputs else "one array"
            raise CannotRun(f"{case.name}: the adapter returned {name!r}; {kind} is {form}")
        try:
            arrays[name] = to_numpy(a)
        except Exception as error:
            raise CannotRun(f"{case.name}: {name} cannot be made a NumPy array: {_where(error)}") from error
    return arrays


def _kind(name):
    """"after_1/W/0" -> "after_1/W"; "loss" -> "loss"."""
    kind, _, layer = name.rpartition("/")
    return kind if layer.isdecimal() else name


def _kinds(outputs):
    return list(dict.fromkeys(map(_kind, outputs)))


def to_numpy(a):
    """NumPy, CuPy, PyTorch, JAX or TensorFlow array, or a number -> NumPy array of float64."""
    for leave in ("detach", "cpu", "resolve_neg"):  # PyTorch: its graph, its device, its lazy sign
        a = getattr(a, leave)() if hasattr(a, leave) else a
    if str(getattr(a, "dtype", "")) == "torch.bfloat16":  # which NumPy does not know
        a = a.float()
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError("expected an array without a mask")
    if type(a).__module__.partition(".")[0] in BACKENDS:
        a = to_host(a)
    if not hasattr(a, "__array__") and hasattr(a, "__dlpack__"):
        a = np.from_dlpack(a)
    a = np.asarray(a)
    if a.dtype.kind not in "fiub" and a.dtype.name != "bfloat16":
        raise TypeError(f"expected real numbers, got {a.dtype}")
    return a.astype(np.float64)


def _where(error):
    """An exception in one line, with the last place that it came from in a user's code, if there is one."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    users = [frame for frame in frames if not frame.filename.startswith(NOT_THE_USERS)
             and not {"site-packages", "dist-packages"} & set(Path(frame.filename).parts)]
    place = f"({users[-1].filename}:{users[-1].lineno})" if users else ""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text if len(text) <= LONG else text[:LONG] + ' ...'} {place}".rstrip()

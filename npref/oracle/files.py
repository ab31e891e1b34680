"""Golden vectors in HDF5.

/                   attributes: format, version, npref, revision, conventions (JSON), cases (JSON, their names in order)
/CASE               attributes: settings (JSON: `Case.settings`), quantities (JSON, in the order of the computation)
/CASE/inputs/...    x, t, W, b, R, eps, baseline, one data set a layer where there are layers
/CASE/outputs/...   the reference values; attribute `scale`: an array, |out - ref| <= TOLERANCE · eps · scale
Every data set is float64, with an attribute sha256 of its little-endian bytes in C order, an output's scale after them; a case's
own sha256 is of settings, quantities and the names of its inputs. After HDF5's last byte, where it does not look, stands the sha256 of
all before it, unless some program has changed the file since: HDF5 may hang on a damaged one.
"""

import hashlib
import io
import json
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from glob import escape
from multiprocessing import get_context
from pathlib import Path
from threading import current_thread, main_thread

import h5py
import numpy as np

from .. import __version__
from ..command_line import quoted
from ..runlog import replace_file, source_revision, temporary_of
from .cases import ARRAYS, case_list, from_settings, with_inputs
from .conventions import CONVENTIONS
from .reference import Kink, reference

FORMAT, VERSION = "npref oracle", 1
TRIES = 100
HDF5 = b"\x89HDF\r\n\x1a\n"  # with which such a file begins
SEAL = b"sha256 of all bytes before this line: "


def write(path, cases="*", progress=None, processes=1):
    """Compute the built-in cases whose names match a glob, or one of several, and write them. Returns their number.

    The same bytes every time, for one revision of npref (before h5py 3.15 but for the groups' times). A script that asks for
    processes > 1 must be importable (a __main__ guard).

    Raises ValueError where no case matches, and FileExistsError where `path` is something else than golden vectors.
    """
    path, all_specs = Path(path), {spec[0].name: spec for spec in case_list()}
    specs = [all_specs[name] for name in _selected(all_specs, cases)]
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent}: create it first")
    _check_writable(path)  # before the work, not after it
    if path.exists() and not _replaceable(path):
        raise FileExistsError(f"{path} exists and is not a file of golden vectors: choose another name, or remove it")
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v108", "v108")) as file:
        file.attrs.update(format=FORMAT, version=VERSION, npref=__version__, revision=source_revision(),
                          conventions=json.dumps({name: c.text for name, c in CONVENTIONS.items()}),
                          cases=json.dumps([spec[0].name for spec in specs]))
        with _mapping(processes) as mapped:
            for done, (case, values) in enumerate(mapped(_computed, specs), 1):
                _write_case(file.create_group(case.name), case, values)
                if progress is not None:
                    progress(done, len(specs))
    whole = image.getvalue()
    replace_file(path, whole, _seal(whole))
    return len(specs)


def _check_writable(path):
    """Raise OSError where `replace_file` could not write."""
    temporary = temporary_of(path)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}: choose another folder or name") from error


@contextmanager
def _mapping(processes):
    """`map`, shared out to so many processes, which leave Ctrl-C to this one and end where it does."""
    if processes == 1:
        yield map
        return

    def shared(function, items):
        with _without_interrupts():  # the processes, which start now, inherit this
            return pool.map(function, items)

    with ExitStack() as ending, ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        try:
            yield shared
        except BaseException as error:
            ending.enter_context(_without_interrupts())  # another Ctrl-C would leave a pool that never ends
            pool.shutdown(cancel_futures=True)  # after the cases at hand, of a second at most: killed, one could leave half a result
            if isinstance(error, BrokenProcessPool):
                raise OSError("a process that computed cases was killed, perhaps for memory: nothing was written, try again") from error
            raise


@contextmanager
def _without_interrupts():
    if current_thread() is not main_thread():  # which alone may set handlers
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _computed(spec):
    """A case with the first inputs for which no rounding can put a unit on the other side of its kink, and its reference."""
    for attempt in range(TRIES):
        case = with_inputs(*spec, attempt)
        try:
            values = {name: (a.value, a.scale) for name, a in reference(case).items()}
        except Kink:
            continue
        if not all(np.isfinite(a).all() for pair in values.values() for a in pair):
            raise AssertionError(f"{case.name}: not finite")
        return case, values
    raise AssertionError(f"{spec[0].name}: no inputs away from kinks in {TRIES} tries")


def _write_case(group, case, values):
    inputs = flat({name: getattr(case, name) for name in ARRAYS})
    group.attrs.update(settings=json.dumps(case.settings(), ensure_ascii=False), quantities=json.dumps(list(values)))
    group.attrs["sha256"] = _digest(group.attrs["settings"].encode(), group.attrs["quantities"].encode(), "".join(sorted(inputs)).encode())
    for name, a in inputs.items():
        a = np.ascontiguousarray(a, dtype="<f8")
        group.create_dataset(f"inputs/{name}", data=a).attrs["sha256"] = _digest(a.tobytes())
    for name, (value, scale) in values.items():
        value, scale = (np.ascontiguousarray(a, dtype="<f8") for a in (value, scale))
        group.create_dataset(f"outputs/{name}", data=value).attrs.update(scale=scale, sha256=_digest(value.tobytes(), scale.tobytes()))


def _digest(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()


def read(path, cases="*"):
    """The cases whose names match a glob, or one of several: an iterator of (Case in float64, {quantity: (value, scale)}).

    Raises, at once, ValueError for a file of another kind or version, a damaged one, and where no case matches.
    """
    found = _cases(path, cases)
    next(found)
    return found


def _cases(path, cases):
    with _opened(path) as file:
        names = _selected(json.loads(file.attrs["cases"]), cases, path)
        yield  # so far `read` goes by itself
        for name in names:
            try:
                yield _read_case(file[name])
            except (KeyError, OSError) as error:
                raise ValueError(f"{path}: damaged, {name} cannot be read ({error}): write it anew") from error


@contextmanager
def _opened(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: write one with python -m npref.oracle write VECTORS.h5")
    whole = _whole(path)
    if whole.startswith(HDF5) and not _opens(whole):
        raise ValueError(f"{path}: damaged, or a part of a file only, as HDF5 cannot open it: remove it, and write it anew")
    if not _is_ours(whole):
        raise ValueError(f"{path}: expected golden vectors ({FORMAT}, version {VERSION}), got another kind of file")
    with h5py.File(io.BytesIO(whole), "r") as file:
        try:
            if file.attrs["version"] != VERSION:
                raise ValueError(f"{path}: expected version {VERSION} of the format, got {file.attrs['version']}: write it anew")
            yield file
        except (KeyError, OSError) as error:  # h5py's, of what is not there or cannot be read
            raise ValueError(f"{path}: damaged ({error}): write it anew") from error


def _selected(names, globs, path=None):
    """The names that match a glob, in their own order. Raises ValueError for a glob that matches none, and for none."""
    globs, where = [globs] if isinstance(globs, str) else list(globs), "built in" if path is None else f"in {path}"
    if not globs:
        raise ValueError(f"no case {where} is asked for: expected a name or pattern, '*' for all")
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"no case {where} matches {glob!r}: {_names(path)}")
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def _read_case(group):
    settings, order = json.loads(group.attrs["settings"]), json.loads(group.attrs["quantities"])
    arrays = {}
    for name in ARRAYS:
        node = group["inputs"].get(name)
        if node is None:
            arrays[name] = None if name in ("eps", "baseline") else (None,) * len(settings["layers"])
        elif isinstance(node, h5py.Dataset):
            arrays[name] = _read_array(node)
        else:
            arrays[name] = tuple(_read_array(node[str(l)]) if str(l) in node else None for l in range(len(settings["layers"])))
    given = "".join(sorted(flat(arrays))).encode()
    if _digest(group.attrs["settings"].encode(), group.attrs["quantities"].encode(), given) != group.attrs["sha256"]:
        raise KeyError("its settings or the names of its inputs do not have their sha256")
    outputs = {name: (_read_array(group["outputs"][name], scale := group["outputs"][name].attrs["scale"]), scale) for name in order}
    return from_settings(settings, arrays), outputs


def _read_array(data, *scale):
    a = data[()]
    if _digest(a.tobytes(), *(np.asarray(s).tobytes() for s in scale)) != data.attrs["sha256"]:
        raise KeyError(f"{data.name} does not have its sha256")
    return a


def _seal(image):
    return SEAL + _digest(image).encode() + b"\n"


def _whole(path):
    """The bytes of a file. Raises ValueError if they do not have the sha256 at their end."""
    whole = Path(path).read_bytes()
    image = whole[: -len(_seal(b""))]
    if whole[len(image) :].startswith(SEAL) and whole[len(image) :] != _seal(image):
        raise ValueError(f"{path}: damaged, its sha256 is not the one at its end: write it anew")
    return whole


def _replaceable(path):
    """Whether a file has golden vectors, or had them before it was damaged."""
    try:
        return path.is_file() and _is_ours(_whole(path))
    except ValueError:
        return True


def _opens(whole):
    try:
        h5py.File(io.BytesIO(whole), "r").close()
    except OSError:
        return False
    return True


def _is_ours(whole):
    try:
        with h5py.File(io.BytesIO(whole), "r") as file:
            return isinstance(kind := file.attrs.get("format"), str) and kind == FORMAT
    except (OSError, KeyError):
        return False


def flat(quantities):
    """{"W": (w0, None, w2), "x": x} -> {"W/0": w0, "W/2": w2, "x": x}."""
    out = {}
    for name, a in quantities.items():
        if isinstance(a, (list, tuple)):
            out |= {f"{name}/{l}": a_l for l, a_l in enumerate(a) if a_l is not None}
        elif a is not None:
            out[name] = a
    return out


def list_cases(path=None):
    """(name, text) of the cases in a file, or of the built-in ones."""
    if path is None:
        return [(case.name, case.text) for case, *_ in case_list()]
    with _opened(path) as file:
        return [(name, json.loads(file[name].attrs["settings"])["text"]) for name in json.loads(file.attrs["cases"])]


def _names(path=None):
    return f"python -m npref.oracle list{'' if path is None else f' {quoted(path)}'} shows the names"


def one_case(path, name):
    """The case of that very name, and its quantities. Raises ValueError where there is none."""
    if name not in dict(list_cases(path)):
        raise ValueError(f"no case in {path} is named {name!r}: {_names(path)}")
    return next(read(path, escape(name)))

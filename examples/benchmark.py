"""What a training step costs, beside its matrix products alone:  python examples/benchmark.py

For each method, architecture, K and batch size it prints seconds per step (median), the *floor* (the step's matrix products in the
cheapest exact form known here, of the same shapes and dtype, timed alone in the same rounds), their ratio, where the rest of the time
goes, and the peak of the memory that the step takes. Of the causes, "batch" is fetching and scaling a mini-batch, which is not
part of the step, and "elementwise" is what the others leave. --against also times the plain form of the rules, or PyTorch. PyTorch's
forms must give npref's numbers first (torch-compile: before it is compiled), and a test compares the plain form. npref's step alone
looks for numbers that are not finite. Compare ratios of one run: machines are noisy, and rounds mix everything that is compared.
"""

import installed  # noqa: F401  isort: skip  says so in one line where npref is not
import json
import platform
import random
import statistics
import sys
import time
import tracemalloc
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
from cifar10 import any_letters, exit_code, plotter

from npref import METHODS, get_backend, init_adam, split_method, synchronize, to_host
from npref import loss as loss_of
from npref.backend import BACKENDS
from npref.batches import prepare
from npref.command_line import Parser
from npref.config import Config
from npref.decorrelation import decorrelation_step, moment_is_cheaper
from npref.execution import cores, keep_freed_memory, samples_budget
from npref.functions import one_hot
from npref.layers import Conv, unfold, weight_shape
from npref.network import ARCHITECTURES, DTYPES, spares_x_star
from npref.noise import KINDS, draw
from npref.optim import adam_step
from npref.rules import group_size
from npref.runlog import replace_file, source_revision
from npref.step import compute_update, initial_state, learnable, noise_groups, start_step, training_step
from npref.train import AHEAD, Interrupted

try:
    import resource
except ImportError:  # on Windows, where the process's peak is left out
    resource = None

OURS = {"json": b'{\n "device"', "scaling": b"\x89PNG"}  # how a file begins that this has written, and may replace
SHAPES = {"conv-tiny": ((3, 64, 64), 200), "sarcos": ((21,), 7)}  # of inputs, and outputs; of others CIFAR-10's
AGAINST = ("plain", "torch", "torch-algebra", "torch-compile")


@dataclass(frozen=True)
class Row:
    """One line of the table; seconds are medians, memory is in MB (10^6 bytes)."""

    method: str
    arch: str
    samples: int
    noise: str
    batch_size: int
    step: float
    floor: float
    gmac: float  # multiply-adds of the floor, in 10^9
    shares: dict  # seconds of the step by cause
    memory: float
    against: dict = field(default_factory=dict)  # name: its seconds over npref's

    @property
    def ratio(self):
        return self.step / self.floor


def products(network, method, B, K, size):
    """The step's matrix products: a list of (part, kind, m, k, n), result (m, n), inner dimension k.

    kind: "nt" rows times Wᵀ, "nn" rows times a matrix, "tn" errorᵀ times rows, "syrk" rowsᵀ times themselves. `size` noise samples
    make a group, and one product a layer.
    """
    (rule, decorrelated), out = split_method(method), []
    groups = [min(size, K - k) for k in range(0, K, size)]
    for l, (layer, shape, after) in enumerate(zip(network.layers, network.shapes, network.shapes[1:])):
        w = weight_shape(layer, shape)
        n_out, n, M = w[0], prod(w[1:]), B * prod(after[1:])  # units and inputs of a row, rows
        spare = decorrelated and spares_x_star(M, n_out, n)
        out.append(("clean pass", "nt", M, n, n_out))
        out.append(("update", "tn", n_out, M, n))
        if spare:
            out.append(("clean pass", "nn", n_out, n, n))  # A = W R, for all passes
            out.append(("update", "nt", n_out, n, n))
            out += [("R", "syrk", n, M, n), ("R", "nn", n, n, n), ("R", "nt", n, n, n), ("R", "nn", n, n, n)]
        elif decorrelated:
            out.append(("clean pass", "nt", M, n, n))
            if moment_is_cheaper(M, n):
                out += [("R", "syrk", n, M, n), ("R", "nn", n, n, n)]
            else:
                out += [("R", "nn", M, n, n), ("R", "tn", n, M, n)]
        if l == 0:
            continue
        if rule == "bp":
            out.append(("backward pass", "nn", M, n_out, n))
            if decorrelated and not spare:
                out.append(("backward pass", "nn", min(M, n_out), n, n))  # W R, or R after W
        else:
            passes = l if rule == "inp" else 1  # INP's passes for the layers before are under way
            formed = decorrelated and passes * K * M > n_out
            if formed and not spare:
                out.append(("noisy passes", "nn", n_out, n, n))  # A = W R
            for k in groups:
                if decorrelated and not formed:
                    out.append(("noisy passes", "nt", passes * k * M, n, n))
                out.append(("noisy passes", "nt", passes * k * M, n, n_out))
    return out


class Floor:
    """The matrix products alone: operands and results are there already."""

    def __init__(self, xp, listed, dtype):
        self.xp, self.calls, arrays, rng = xp, [], {}, np.random.default_rng(0)

        def array(name, rows, columns):
            if (name, rows, columns) not in arrays:
                arrays[name, rows, columns] = xp.asarray(rng.random((rows, columns), dtype=dtype))
            return arrays[name, rows, columns]

        for part, kind, m, k, n in listed:
            a = array("a", m, k) if kind[0] == "n" else array("a", k, m).T
            b = a.T if kind == "syrk" else array("b", n, k).T if kind == "nt" else array("b", k, n)
            self.calls.append((part, a, b, array("out", m, n)))

    def __call__(self):
        for _, a, b, out in self.calls:
            self.xp.matmul(a, b, out=out)

    def part(self, name):
        return lambda: [self.xp.matmul(a, b, out=out) for part, a, b, out in self.calls if part == name]


def timed(xp, contestants, rounds):
    """{name: median seconds} of functions called in turn, `rounds` times after a warm-up.

    Every round has an order of its own, for a library's threads may still be spinning on the cores of whoever comes after it. On a GPU
    each is called fifty times in a row, as the steps of an epoch of CIFAR-10 are: Python launches the next while the GPU is at the last.
    """
    seconds, names, rng = {name: [] for name in contestants}, list(contestants), random.Random(0)
    calls = 1 if xp is np else 50
    for i in range(rounds + 1):
        for name in rng.sample(names, len(names)):
            synchronize(xp)
            began = time.perf_counter()
            for _ in range(calls):
                contestants[name]()
            synchronize(xp)
            if i > 0:
                seconds[name].append((time.perf_counter() - began) / calls)
    return {name: statistics.median(s) for name, s in seconds.items()}


def measure(config, backend, rounds, against=(), shares=True):
    """One `Row`."""
    xp, (input_shape, classes) = backend.xp, SHAPES.get(config.arch, ((3, 32, 32), 10))
    network, (rule, _) = config.network(input_shape, classes), split_method(config.method)
    B, K, itemsize = config.batch_size, config.samples, np.dtype(config.dtype).itemsize
    rng = np.random.default_rng(0)
    images, labels = xp.asarray(rng.integers(0, 256, (2 * B, *input_shape), dtype=np.uint8)), xp.asarray(rng.integers(0, classes, 2 * B))
    chosen = xp.asarray(rng.permutation(2 * B)[:B])

    def batch():
        return prepare(images[chosen], config.dtype), one_hot(labels[chosen], classes, config.dtype)

    x, t = batch()
    state, counter = initial_state(config, network, xp), iter(range(10**9))
    size = K if rule == "bp" else group_size(network, rule, B, itemsize, K, samples_budget(xp))
    listed = products(network, config.method, B, K, size)
    floor = Floor(xp, listed, config.dtype)
    before = deque([lambda: None] * AHEAD)  # as in train.py, where a GPU may be as many steps behind

    def step():
        _, outcome = start_step(config, network, state, x, t, next(counter))
        if xp is not np:
            before.append(outcome)
            outcome = before.popleft()
        outcome()

    contestants = {"step": step, "floor": floor}
    for name in against:
        contestants[name] = opponent(name, config, network, backend, x, t, counter)
    seconds = timed(xp, contestants, rounds)
    memory = peak_memory(xp, lambda: training_step(config, network, state, x, t, next(counter))) / 1e6
    found = {}
    if shares:
        found = timed(xp, parts(config, network, state, x, t, batch, floor), max(3, rounds // 2))
        found["decorrelation"] = max(0.0, found["decorrelation"] - found.pop("R products"))
        found["elementwise"] = max(0.0, seconds["step"] - seconds["floor"] - sum(v for k, v in found.items() if k != "batch"))
    halved = 2 if xp is np else 1  # NumPy's BLAS computes one half of rowsᵀ rows
    gmac = sum(m * k * n / (halved if kind == "syrk" else 1) for _, kind, m, k, n in listed) / 1e9
    return Row(config.method, config.arch, K, config.noise if rule != "bp" else "-", B, seconds["step"], seconds["floor"], gmac, found,
               memory, {name: seconds[name] / seconds["step"] for name in against})


def peak_memory(xp, function):
    """Bytes that a call takes at most, beyond what is there before: for NumPy's arrays, or what a pool of its own gets from the device."""
    if xp is np:
        tracemalloc.start()
        function()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak
    pool = xp.cuda.MemoryPool()  # the default one may have free pieces of blocks that are in use
    with xp.cuda.using_allocator(pool.malloc):
        function()
        synchronize(xp)
    return pool.total_bytes()


def parts(config, network, state, x, t, batch, floor):
    """What a step does besides its products, as functions to time by themselves; "elementwise" is what they leave."""
    rule, _ = split_method(config.method)
    update = compute_update(config, network, state.params, x, t, 0)
    copies = [p.copy() for p in learnable(state.params)]
    updates, adam = [d for d in (*update.dW, *update.db) if d is not None], init_adam(copies)
    L, K, xp = len(network.layers), config.samples, floor.xp
    passes = {"bp": 0, "inp": K * L}.get(rule, K)
    y = xp.zeros((passes + 1, *t.shape), dtype=x.dtype)
    inputs = [x, *update.trace.x[:-1]]

    def im2col():
        for l, (layer, image) in enumerate(zip(network.layers, inputs)):
            if isinstance(layer, Conv):
                for _ in range(1 if l == 0 else 1 + K * (0 if rule == "bp" else l if rule == "inp" else 1)):
                    unfold(layer, image)

    R = [None if r is None else r.copy() for r in state.params.R]
    return {
        "noise": lambda: [None for _ in noise_groups(config, network, 0, range(len(x)), xp)] if rule != "bp" else None,
        "losses": lambda: loss_of(config.loss, y, t),
        "optimiser": lambda: adam_step(copies, updates, adam, 0.0),
        "decorrelation": lambda: decorrelation_step(R, update.trace, 0.0),
        "R products": floor.part("R"),
        "im2col": im2col,
        "batch": batch,
    }


def opponent(name, config, network, backend, x, t, counter):
    """Another implementation's training step, once its update is npref's."""
    if name == "plain":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
        try:
            from plain import plain_step
        except ModuleNotFoundError as error:
            raise ValueError(f"--against plain needs tests/plain.py of a checkout of npref ({error})") from error
        state = initial_state(config, network, backend.xp)
        return lambda: plain_step(config, network, state, x, t, next(counter))
    import torch_steps
    torch_steps.check(name, config, network)
    params = initial_state(config, network).params
    return torch_steps.step(name, config, network, params, to_host(x), to_host(t), cores(), "cpu" if backend.xp is np else "cuda")


def table(rows, against):
    """The rows as lines of text."""
    causes = ("noise", "elementwise", "losses", "optimiser", "decorrelation", "im2col", "batch")
    head = f"{'method':6} {'arch':9} {'K':>4} {'noise':10} {'B':>5} {'s/step':>8} {'floor':>8} {'ratio':>6} {'GMAC':>7}  "
    head += " ".join(f"{c[:8]:>8}" for c in causes) + f" {'MB':>7}  " + " ".join(f"{name:>13}" for name in against)
    lines = [head.rstrip()]
    for r in rows:
        line = f"{r.method:6} {r.arch:9} {r.samples:4} {r.noise:10} {r.batch_size:5} "
        line += f"{r.step:8.4f} {r.floor:8.4f} {r.ratio:6.2f} {r.gmac:7.2f}  "
        line += " ".join(f"{100 * r.shares[c] / r.step:7.1f}%" if r.shares else f"{'-':>8}" for c in causes) + f" {r.memory:7.0f}  "
        lines.append((line + " ".join(f"{r.against[name]:12.2f}x" for name in against)).rstrip())
    return "\n".join(lines)


def noise_table(xp, n=1 << 20):
    """Nanoseconds a number: NumPy's own float32 normals, and npref's noise."""
    generator, out, where = np.random.default_rng(0), np.empty(n, dtype=np.float32), dict(seed=0, step=0, layer=0, dtype="float32")
    rows = {"numpy standard_normal": lambda: generator.standard_normal(dtype=np.float32, out=out)}
    for kind in KINDS:
        rows[kind] = lambda kind=kind: draw(xp, kind, (1024,), 1e-3, samples=range(1), rows=range(n // 1024), **where)
    return {name: 1e9 * s / n for name, s in timed(xp, rows, 7).items()}


def parse(arguments):
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help="(default: all eight)")
    parser.add_argument("--archs", nargs="+", choices=ARCHITECTURES, default=["fc3"], metavar="ARCH", help="(default: fc3)")
    parser.add_argument("--samples", nargs="+", type=int, default=[1], metavar="K", help="noise samples (default: 1)")
    parser.add_argument("--noise", nargs="+", choices=KINDS, default=["gaussian"], help="(default: gaussian)")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1000], metavar="B", help="(default: 1000)")
    parser.add_argument("--backend", choices=BACKENDS, default="numpy", help="(default: numpy)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: float32)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timings each number is the median of (default: 5)")
    parser.add_argument("--against", nargs="+", choices=AGAINST, default=[], help="other implementations to time (default: none)")
    parser.add_argument("--no-shares", action="store_true", help="leave out where the time goes (default: no)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there, too")
    parser.add_argument("--scaling", metavar="PICTURE", type=Path, help="instead: time against K, depth and B, drawn to this file")
    args = parser.parse_args(arguments)
    for name, values in (("--samples", args.samples), ("--batch-size", args.batch_size), ("--rounds", [args.rounds])):
        if min(values) < 1:
            parser.error(f"{name} must be at least 1, got {min(values)}")
    if (args.samples, args.noise) != ([1], ["gaussian"]) and all(split_method(method)[0] == "bp" for method in args.methods):
        parser.error("--samples and --noise have no effect on bp and dbp, which draw none: leave them out")
    for name in ("json", "scaling"):
        path = getattr(args, name)
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            parser.error(f"--{name} names a file in a folder that is there, got {path}")
        if name == "scaling" and path is not None and path.suffix.lower() != ".png":
            parser.error(f"--scaling names a .png file, which is what is drawn, got {path}")
        if path is not None and path.is_file() and not path.read_bytes().startswith(OURS[name]):
            parser.error(f"--{name}: {path} is there already and none of ours, remove it or name another file")
    if args.scaling is not None:
        for name in ("archs", "samples", "noise", "batch_size"):
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"--scaling has its own K, depths and batch sizes: leave out --{name.replace('_', '-')}")
    return args


def configurations(args):
    """Every asked-for combination that makes sense, as Config."""
    for arch, B, method, K, noise in product(args.archs, args.batch_size, args.methods, args.samples, args.noise):
        if split_method(method)[0] != "bp":
            yield Config(method=method, arch=arch, samples=K, noise=noise, batch_size=B, dtype=args.dtype)
        elif (K, noise) == (args.samples[0], args.noise[0]):
            yield Config(method=method, arch=arch, batch_size=B, dtype=args.dtype)


def scaling_configurations(args):
    """A line of configurations in each direction: K, depth, batch size."""
    for method in args.methods:
        for K in (1, 3, 10, 20, 30) if split_method(method)[0] != "bp" else (1,):
            yield Config(method=method, samples=K, dtype=args.dtype)
        for arch in ("fc6", "fc9"):
            yield Config(method=method, arch=arch, dtype=args.dtype)
        for B in (250, 500, 2000, 4000):
            yield Config(method=method, batch_size=B, dtype=args.dtype)


def main(arguments=None):
    any_letters()
    args = parse(arguments)
    return exit_code(lambda stop: run(args, stop))


def run(args, stop):
    backend = get_backend(args.backend)
    keep_freed_memory()
    versions = {"python": platform.python_version(), "numpy": np.__version__} | {backend.name: backend.xp.__version__}
    if any(name.startswith("torch") for name in args.against):
        try:
            import torch
            versions["torch"] = torch.__version__
        except ModuleNotFoundError:
            raise ValueError('--against torch needs PyTorch: pip install -e ".[adapters]"') from None
        if args.backend == "cupy" and not torch.cuda.is_available():
            raise ValueError("--against torch with --backend cupy needs a PyTorch that can use the GPU, and this one cannot: "
                             "install one for your CUDA version, or leave out --against")
    if args.scaling is not None:
        plot_scaling = plotter(True).plot_scaling
    print(f"{backend.device}; {', '.join(f'{name} {version}' for name, version in versions.items())}, {cores()} threads; "
          f"{args.dtype}; revision {source_revision()}", flush=True)
    rows = []
    for config in configurations(args) if args.scaling is None else scaling_configurations(args):
        rows.append(measure(config, backend, args.rounds, args.against, not args.no_shares))
        lines = table(rows[-1:], args.against).split("\n")
        print("\n".join(lines if len(rows) == 1 else lines[1:]), flush=True)
        if stop():
            raise Interrupted(f"stopped after {len(rows)} lines" + (f"; nothing was written to {args.json}" if args.json else ""))
    if args.scaling is not None:
        print(plot_scaling([asdict(row) for row in rows], args.scaling))
    noise = noise_table(backend.xp)
    rate = timed(backend.xp, {"gemm": Floor(backend.xp, [("", "nn", 4096, 4096, 4096)], args.dtype)}, 3)["gemm"]
    peak = None
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 * (1024 if sys.platform == "linux" else 1)
    print("ns a number: " + ", ".join(f"{name} {ns:.2f}" for name, ns in noise.items()))
    print(f"matrix products of 4096: {2 * 4096**3 / rate / 1e12:.3f} TFLOP/s; "
          + ", ".join(f"{r.method} {r.arch} K={r.samples}: {2 * r.gmac / r.step / 1e3:.3f}" for r in rows))
    if peak is not None:
        print(f"peak of this process: {peak:.0f} MB")
    if args.json:
        report = {"device": backend.device, "backend": backend.name, "versions": versions, "threads": cores(), "dtype": args.dtype,
                  "revision": source_revision(), "rounds": args.rounds, "peak_mb": peak,
                  "noise_ns": noise, "gemm_seconds": rate, "rows": [asdict(r) | {"ratio": r.ratio} for r in rows]}
        replace_file(args.json, (json.dumps(report, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())

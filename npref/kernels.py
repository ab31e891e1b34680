"""CUDA for what array code does in many launches: Python takes longer to launch one than a GPU needs for most arrays here.

All of this has a form in array code, for a CPU, where it is called from, and tests that hold the two together. A function of CUDA does one
item's work, a layer's, say: thread i of `threads` does what i, i + threads and so on stand for, however many threads there are. `launch`
makes one kernel of it for a list of items, which every thread takes one after the other.
"""

from functools import lru_cache

import numpy as np

ARGUMENTS = 512  # of 8 bytes each: older CUDA has 4 KiB for a kernel's
FULL = 1 << 18  # threads that fill a large GPU
C_TYPES = {"f": "float*", "d": "double*", "?": "bool*", np.uint64: "u64", np.float64: "double"}


def launch(xp, function, items, shared=(), threads=None):
    """function(i, threads, *item, *shared) for each thread i and item, in one kernel, or a few where there are very many items.

    function: the name of one of CUDA below. items: tuples of arrays, np.uint64 and np.float64, all of one length; shared: further ones, the
    same for every item. A kernel sees where an array's numbers begin, no more: it must be C-contiguous, as `a.ravel()` is. threads: for how
    many there is work; as many as fill a GPU by default.
    """
    threads = FULL if threads is None else threads
    if not items or threads == 0:
        return
    together = max(1, (ARGUMENTS - len(shared)) // len(items[0]))
    for k in range(0, len(items), together):
        arguments = [*(a for item in items[k : k + together] for a in item), *shared]
        types = [type(a) if isinstance(a, np.generic) else a.dtype.char for a in arguments]
        _kernel(xp, function, len(items[0]), len(shared), *types)(((threads + 255) // 256,), (256,), tuple(arguments))


@lru_cache
def _kernel(xp, function, each, shared, *types):
    names = [f"a{k}" for k in range(len(types))]
    parameters = ", ".join(f"{C_TYPES[t]} {name}" for t, name in zip(types, names))
    end = len(types) - shared  # of the items' own
    calls = "\n    ".join(f"{function}(i, threads, {', '.join(names[k : k + each] + names[end:])});" for k in range(0, end, each))
    return xp.RawKernel(f"""{CUDA}
extern "C" __global__ void each_{function}({parameters})
{{
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x, threads = (u64)gridDim.x * blockDim.x;
    {calls}
}}
""", f"each_{function}")


CUDA = r"""
typedef unsigned long long u64;

// Random123's Philox 4x64, 10 rounds. __umul64hi is the high half of a 64 x 64 bit product, one intrinsic on a GPU.
__device__ void philox4x64_10(u64* c, u64 k0, u64 k1)
{
    const u64 m0 = 0xD2E7470EE14C6C93ULL, m1 = 0xCA5A826395121157ULL;
    for (int round = 0; round < 10; ++round) {
        u64 high0 = __umul64hi(m0, c[0]), low0 = m0 * c[0];
        u64 high1 = __umul64hi(m1, c[2]), low1 = m1 * c[2];
        c[0] = high1 ^ c[1] ^ k0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ k1;
        c[3] = low0;
        k0 += 0x9E3779B97F4A7C15ULL;
        k1 += 0xBB67AE8584CAA73BULL;
    }
}

// The noise of a layer: out (samples, rows, units); `per_row` blocks are a row's, the last of them perhaps in part. c0, the first block,
// and c2 are the layer's own, the other words all layers'. Not inlined: for many layers that takes long to compile.

// +sigma or -sigma, a byte's eight at a time, its lowest bit first
template <typename T>
__device__ __noinline__ void rademacher(u64 i, u64 threads, T* out, u64 samples, u64 rows, u64 units, u64 per_row, u64 c0, u64 c2,
                                        u64 k0, u64 k1, u64 c1, u64 c3, double sigma)
{
    for (; i < samples * rows * per_row * 32; i += threads) {
        u64 block = i / 32, byte = i % 32;
        u64 c[4] = {c0 + block % (rows * per_row), c1 + block / (rows * per_row), c2, c3};
        philox4x64_10(c, k0, k1);
        T* row = out + block / per_row * units;
        for (int bit = 0; bit < 8; ++bit) {
            u64 j = 8 * (i % (32 * per_row)) + bit;
            if (j < units) row[j] = c[byte / 8] >> (8 * (byte % 8) + bit) & 1 ? (T)sigma : -(T)sigma;
        }
    }
}

// as noise.normals: a block's eight at a time, the cosine halves of a row before the sine halves
template <typename T>
__device__ __noinline__ void gaussian(u64 i, u64 threads, T* out, u64 samples, u64 rows, u64 units, u64 per_row, u64 c0, u64 c2,
                                      u64 k0, u64 k1, u64 c1, u64 c3, double sigma)
{
    const T turn = 6.283185307179586 / 4294967296.0;  // of a signed integer, see noise.normals
    u64 blocks = rows * per_row;
    for (; i < blocks * samples; i += threads) {
        u64 c[4] = {c0 + i % blocks, c1 + i / blocks, c2, c3};
        philox4x64_10(c, k0, k1);
        T* row = out + i / per_row * units;
        for (int w = 0; w < 4; ++w) {
            T u = (T)(unsigned)c[w] * (T)(1 / 4294967296.0) + (T)(0.5 / 4294967296.0);
            T angle = (T)(int)(c[w] >> 32) * turn + turn / 2;
            T radius = sqrt((T)-2 * log(u));
            u64 j = 4 * (i % per_row) + w;
            if (j < units) row[j] = cos(angle) * radius * (T)sigma;
            j += 4 * per_row;
            if (j < units) row[j] = sin(angle) * radius * (T)sigma;
        }
    }
}

// As NumPy's argmax: the first of the largest, or the first that is not a number.
template <typename A> __device__ u64 largest(const A* a, u64 n)
{
    u64 best = 0;
    for (u64 j = 1; j < n; ++j)
        if (a[j] > a[best] || (a[j] != a[j] && a[best] == a[best])) best = j;
    return best;
}

// functions.correct: out (rows,), y (rows, n), t (B, n)
template <typename Y, typename T>
__device__ void correct(u64 i, u64 threads, bool* out, const Y* y, const T* t, u64 rows, u64 B, u64 n)
{
    for (; i < rows; i += threads) out[i] = largest(y + i * n, n) == largest(t + i % B * n, n);
}

template <typename Y> __device__ double sum_of_exponentials(const Y* y, double m, u64 n)
{
    double z = 0;
    for (u64 j = 0; j < n; ++j) z += exp(y[j] - m);
    return z;
}

// functions.loss: out (rows,), y (rows, n), t (B, n)
template <typename Y, typename T>
__device__ void cross_entropy(u64 i, u64 threads, double* out, const Y* y, const T* t, u64 rows, u64 B, u64 n)
{
    for (; i < rows; i += threads) {
        const Y* y_i = y + i * n;
        const T* t_i = t + i % B * n;
        double m = y_i[largest(y_i, n)], log_z = log(sum_of_exponentials(y_i, m, n)), sum = 0;
        for (u64 j = 0; j < n; ++j) sum += t_i[j] * (m - y_i[j] + log_z);
        out[i] = sum;
    }
}

// functions.loss_gradient: out, y (rows, n), t (B, n)
template <typename Y, typename T>
__device__ void cross_entropy_gradient(u64 i, u64 threads, Y* out, const Y* y, const T* t, u64 rows, u64 B, u64 n)
{
    for (; i < rows; i += threads) {
        const Y* y_i = y + i * n;
        const T* t_i = t + i % B * n;
        double m = y_i[largest(y_i, n)], z = sum_of_exponentials(y_i, m, n), total = 0;
        for (u64 j = 0; j < n; ++j) total += t_i[j];
        for (u64 j = 0; j < n; ++j) out[i * n + j] = total * (exp(y_i[j] - m) / z) - t_i[j];
    }
}

// execution.weighted_sums: out (B, n), weights (K, B), a (K, B, n)
template <typename T>
__device__ __noinline__ void weighted_sum(u64 i, u64 threads, T* out, const T* weights, const T* a, u64 K, u64 B, u64 n, u64 added)
{
    for (; i < B * n; i += threads) {
        u64 b = i / n;
        T sum = weights[b] * a[i];
        for (u64 k = 1; k < K; ++k) sum += weights[k * B + b] * a[k * B * n + i];
        out[i] = added ? out[i] + sum : sum;
    }
}

// execution.squares, first half: out (rows, parts), of which each sums a row's squares from its own on, `parts` apart; a (rows, n)
template <typename T> __device__ void sums_of_squares(u64 i, u64 threads, T* out, const T* a, u64 rows, u64 n, u64 parts)
{
    for (; i < rows * parts; i += threads) {
        const T* row = a + i / parts * n;
        T sum = 0;
        for (u64 j = i % parts; j < n; j += parts) sum += row[j] * row[j];
        out[i] = sum;
    }
}

// execution.squares, second half: out (rows,), a (rows, parts)
template <typename T> __device__ void sums(u64 i, u64 threads, T* out, const T* a, u64 rows, u64 parts)
{
    for (; i < rows; i += threads) {
        T sum = 0;
        for (u64 j = 0; j < parts; ++j) sum += a[i * parts + j];
        out[i] = sum;
    }
}

// execution.mark_nonfinite: a (n,), one of the marks
template <typename T> __device__ void mark_nonfinite(u64 i, u64 threads, const T* a, u64 n, u64 mark, double* marks)
{
    for (; i < n; i += threads) {
        T zero = a[i] - a[i];  // or not a number
        if (zero != zero) marks[mark] = a[i];
    }
}

// optim.sgd_step: parameter and update (n,)
template <typename T, typename D> __device__ void sgd(u64 i, u64 threads, T* p, const D* d, u64 n, double rate)
{
    for (; i < n; i += threads) p[i] -= (D)rate * d[i];
}

// optim.adam_step: parameter, update and moments (n,)
template <typename T, typename D>
__device__ void adam(u64 i, u64 threads, T* p, const D* d, T* m, T* v, u64 n,
                     double beta1, double rest1, double beta2, double rest2, double eps, double rate)
{
    for (; i < n; i += threads) {
        m[i] = m[i] * (T)beta1 + d[i] * (D)rest1;
        v[i] = v[i] * (T)beta2 + d[i] * d[i] * (D)rest2;
        p[i] -= m[i] / ((D)sqrt(v[i]) + (D)eps) * (D)rate;
    }
}
"""

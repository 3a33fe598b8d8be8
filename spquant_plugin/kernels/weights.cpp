// Weight quantisers in one pass each: errors of several scales, levels, and the gradient through.
//
// Arithmetic as in functional/weights.py, operation by operation, so that both choose the same
// scales and the same levels. Constants above this file: real, DYADIC, TWO_LEVELS, SCALES.

#include <math.h>
#include <stdint.h>

struct Weights {
    const real *rows, *scales, *grad;  // [count, size], [count or 1, SCALES], [count, size]
    const int32_t* table;
    double* errors;  // [count, parts, SCALES + 1]: the last is the energy
    real* out;       // [count, size]
    double steps, resolution, top, reach;
    int64_t count, size, chunk, each_scale, last, divide, threads;
};

namespace {

inline real magnitude(real x) { return x < 0 ? -x : x; }

// Nearest level of a magnitude in units of its scale; a tie goes to the smaller one.
inline real nearest(const Weights& w, real m) {
    if (TWO_LEVELS) return m > real(w.top) / 2 ? real(1) : real(0);
    const real step = ceil(m * real(w.steps));
    const real address = step < real(w.last) ? step : real(w.last);
    return real(w.table[int32_t(address)]) / real(w.resolution);
}

inline real error(const Weights& w, real x, real scale) {
    if (DYADIC) {  // in units of the scale, where no square can underflow
        const real m = magnitude(x) / scale;
        return nearest(w, m) - m;
    }
    const real whole = rint(x / scale), top = real(w.top);
    const real level = whole < -top ? -top : whole > top ? top : whole;
    return x - level * scale;
}

// Squares in the weight's precision, their sum in double precision. In two loops, each of which
// becomes vector instructions.
template <typename Function>
inline double sum_of_squares(const real* x, int64_t n, Function function) {
    constexpr int64_t kPiece = 256;
    real squares[kPiece];
    double sum = 0;
    for (int64_t start = 0; start < n; start += kPiece) {
        const int64_t left = n - start < kPiece ? n - start : kPiece;
#pragma omp simd
        for (int64_t i = 0; i < left; ++i) {
            const real value = function(x[start + i]);
            squares[i] = value * value;
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < left; ++i) sum += double(squares[i]);
    }
    return sum;
}

template <typename Chunk>
void each_chunk(const Weights& w, Chunk chunk) {
    const int64_t parts = (w.size + w.chunk - 1) / w.chunk;
#pragma omp parallel for schedule(static) num_threads(int(w.threads)) if (w.threads > 1)
    for (int64_t i = 0; i < w.count * parts; ++i) {
        const int64_t row = i / parts, start = i % parts * w.chunk;
        const int64_t left = w.size - start;
        chunk(row, row * w.size + start, left < w.chunk ? left : w.chunk, i);
    }
}

}  // namespace

extern "C" void errors(const Weights* call) {
    const Weights& w = *call;
    each_chunk(w, [&](int64_t row, int64_t start, int64_t n, int64_t part) {
        const real* const x = w.rows + start;
        double* const out = w.errors + part * (SCALES + 1);
        for (int k = 0; k < SCALES; ++k) {
            const real scale = w.scales[(w.each_scale ? row : 0) * SCALES + k];
            out[k] = sum_of_squares(x, n, [&](real value) { return error(w, value, scale); });
        }
        out[SCALES] = sum_of_squares(x, n, [](real value) { return value; });
    });
}

extern "C" void quantize(const Weights* call) {
    const Weights& w = *call;
    each_chunk(w, [&](int64_t row, int64_t start, int64_t n, int64_t) {
        const real scale = w.scales[w.each_scale ? row : 0];
        const real *const x = w.rows + start, top = real(w.top);
        real* const out = w.out + start;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
            real level;
            if (DYADIC) {
                const real size = nearest(w, magnitude(x[i]) / scale) * scale;
                level = x[i] > 0 ? size : x[i] < 0 ? -size : real(0);
            } else {
                const real whole = rint(x[i] / scale);
                level = whole < -top ? -top : whole > top ? top : whole;
            }
            out[i] = level;
        }
    });
}

extern "C" void pass_gradient(const Weights* call) {
    const Weights& w = *call;
    each_chunk(w, [&](int64_t row, int64_t start, int64_t n, int64_t) {
        const real scale = w.scales[w.each_scale ? row : 0], edge = scale * real(w.reach);
        const real *const x = w.rows + start, *const grad = w.grad + start;
        real* const out = w.out + start;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
            const real g = w.divide ? grad[i] / scale : grad[i];
            out[i] = magnitude(x[i]) <= edge ? g : real(0);
        }
    });
}

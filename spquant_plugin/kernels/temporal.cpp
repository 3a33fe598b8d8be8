// Weights that change with the time step: levels of all steps in one pass, and their gradient.
//
// Arithmetic as in functional/temporal.py. Constants above this file: real, bits, TOP.

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <vector>

struct Temporal {
    const real* drive;                  // [rows, size]: the normalised weight
    const real* limits;                 // [patterns - 1]
    const real *levels, *gains;         // [steps, patterns]; a gain is negative where a step fires
    real* const* steps_of;              // pointers to [rows, size]: levels, or their gradients
    real *sums, *out;                   // [steps, rows] of magnitudes or gradients; [rows, size]
    double spread;                      // by which the weight was divided
    int64_t rows, size, steps, patterns, threads;
};

namespace {

constexpr int64_t kPiece = 512;
constexpr double kSlope = 4;

inline real magnitude(real x) { return x < 0 ? -x : x; }

// exp(-x) for x >= 0: two to a whole power, times a series for what is left.
inline real decay(real x) {
    constexpr bool kSingle = sizeof(real) == 4;
    constexpr int kTerms = kSingle ? 7 : 13;
    constexpr real kMagic = kSingle ? real(12582912.0) : real(6755399441055744.0);
    constexpr real kReach = kSingle ? real(86) : real(700);
    x = x < kReach ? x : kReach;
    const real binary = x * real(-1.44269504088896340736);
    const real shifted = binary + kMagic;
    const real left = (binary - (shifted - kMagic)) * real(0.69314718055994530942);
    real sum = 1;
#pragma GCC unroll 16
    for (int k = kTerms; k > 0; --k) sum = sum * left * (real(1) / real(k)) + real(1);
    bits pattern;
    memcpy(&pattern, &shifted, sizeof(real));
    pattern = (pattern << (kSingle ? 23 : 52)) + (bits(kSingle ? 127 : 1023) << (kSingle ? 23 : 52));
    real power;
    memcpy(&power, &pattern, sizeof(real));
    return sum * power;
}

// e^k for k = 1 to TOP: what one jump lies apart from the next, times the sigmoids' slope.
constexpr double kJumps[] = {1, 2.7182818284590452, 7.3890560989306502, 20.085536923187668,
                             54.598150033144239, 148.4131591025766, 403.42879349273512,
                             1096.6331584284586};

// Half of the slopes of all sigmoids, at a potential of this magnitude.
inline real slope(real potential) {
    const real tail = decay(potential * real(kSlope));
    real total = 0;
#pragma GCC unroll 8
    for (int k = 1; k <= TOP; ++k) {
        // Two sigmoids over one division.
        const real up = tail * real(kJumps[k]), down = tail * real(1 / kJumps[k]);
        const real of_up = (1 + up) * (1 + up), of_down = (1 + down) * (1 + down);
        total += (up * of_down + down * of_up) / (of_up * of_down);
    }
    return total * real(kSlope / 2);
}

// Number of the pattern of each weight.
inline void number(const Temporal& w, const real* drive, int32_t* found, int64_t n) {
    for (int64_t i = 0; i < n; ++i) found[i] = 0;
    for (int64_t p = 0; p + 1 < w.patterns; ++p) {
        const real limit = w.limits[p];
        for (int64_t i = 0; i < n; ++i) found[i] += magnitude(drive[i]) > limit;
    }
}

template <typename Piece>
inline void each_piece(int64_t size, Piece piece) {
    for (int64_t start = 0; start < size; start += kPiece)
        piece(start, size - start < kPiece ? size - start : kPiece);
}

}  // namespace

extern "C" void levels(const Temporal* call) {
    const Temporal& w = *call;
#pragma omp parallel for schedule(static) num_threads(int(w.threads)) if (w.threads > 1)
    for (int64_t row = 0; row < w.rows; ++row) {
        int32_t found[kPiece];
        const real* const drive = w.drive + row * w.size;
        for (int64_t t = 0; t < w.steps; ++t) w.sums[t * w.rows + row] = 0;
        each_piece(w.size, [&](int64_t start, int64_t n) {
            const real* const x = drive + start;
            number(w, x, found, n);
            for (int64_t t = 0; t < w.steps; ++t) {
                const real* __restrict const table = w.levels + t * w.patterns;
                real* __restrict const out = w.steps_of[t] + row * w.size + start;
                real sum = 0;  // of at most 512 small whole numbers: exact in any order
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < n; ++i) {
                    const real level = table[found[i]];
                    out[i] = x[i] < 0 ? -level : level;
                    sum += level;
                }
                w.sums[t * w.rows + row] += sum;
            }
        });
    }
}

extern "C" void gradient(const Temporal* call) {
    const Temporal& w = *call;
    // Of each row, so that their sum does not depend on which thread was first.
    std::vector<double> alls(w.rows, 0), alongs(w.rows, 0);
#pragma omp parallel for schedule(static) num_threads(int(w.threads)) if (w.threads > 1)
    for (int64_t row = 0; row < w.rows; ++row) {
        int32_t found[kPiece];
        real total[kPiece];
        each_piece(w.size, [&](int64_t start, int64_t n) {
            const real* const x = w.drive + row * w.size + start;
            number(w, x, found, n);
            for (int64_t i = 0; i < n; ++i) total[i] = 0;
            for (int64_t t = 0; t < w.steps; ++t) {
                const real* __restrict const gains = w.gains + t * w.patterns;
                const real* __restrict const grad = w.steps_of[t] + row * w.size + start;
                const real of_sum = w.sums[t * w.rows + row];
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) {
                    const real signed_gain = gains[found[i]], gain = magnitude(signed_gain);
                    const real acts = signed_gain < 0 ? of_sum : real(0);
                    const real whole = grad[i] + (x[i] < 0 ? -acts : acts);
                    total[i] += whole * slope(gain * magnitude(x[i])) * gain;
                }
            }
            real* const out = w.out + row * w.size + start;
            real sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
            for (int64_t i = 0; i < n; ++i) {
                out[i] = total[i];
                sum += total[i];
                product += total[i] * x[i];
            }
            alls[row] += double(sum);
            alongs[row] += double(product);
        });
    }
    double all = 0, along = 0;
    for (int64_t row = 0; row < w.rows; ++row) all += alls[row], along += alongs[row];
    // Through the normalisation: its mean and its deviation depend on every weight.
    const int64_t count = w.rows * w.size;
    const real mean = real(all / double(count));
    const real stretch = count > 1 && w.spread > 0 ? real(along / double(count - 1)) : real(0);
    const real inverse = w.spread > 0 ? real(1 / w.spread) : real(1);
#pragma omp parallel for simd schedule(static) num_threads(int(w.threads)) if (w.threads > 1)
    for (int64_t i = 0; i < count; ++i)
        w.out[i] = (w.out[i] - mean - w.drive[i] * stretch) * inverse;
}

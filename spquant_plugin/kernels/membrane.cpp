// The membrane recurrence of a whole sequence, forward and backward, in one pass over memory.
//
// The neurons are cut into blocks that stay in the cache while all time steps pass over them, so
// that each input is read once and each output written once, whatever the number of steps. What a
// rule fixes stands above this file as constants when it is compiled; see native.py.
//
// The forward pass rounds as torch does: the same operations in the same order, none contracted.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// --- what a call brings; native.py has the same fields in the same order -------------------------

struct Shared {
    const real *x;                                  // [steps, neurons]
    const real *state, *fired;                      // [neurons], or null: from rest, none fired
    const real *threshold, *decay, *gain, *mask;    // gain and mask may be null
    void* code;                                     // [steps, neurons] of 8 or 16 bits, or null
    double unit, code_scale;
    int64_t steps, neurons, row, block, threads, wide_code;
    int64_t each_threshold, each_decay, each_gain;  // one value per neuron, or one for all
};

struct Forward {
    Shared shared;
    real *spikes, *final, *potentials, *membranes;  // the last two may be null
};

struct Backward {
    Shared shared;
    const real *spikes, *final, *potentials, *membranes;  // gradients that arrive; may be null
    real *grad_x, *grad_state, *grad_mask;                // gradients that leave; may be null
    real *threshold_each, *decay_each, *gain_each;        // one per neuron,
    double *threshold_parts, *decay_parts, *gain_parts;   // or one sum per block; may be null
};

namespace {

// Powers of ln 2 over factorials: the series of two to the power of x.
constexpr double POWERS[] = {
    1.0, 0.69314718055994531, 0.24022650695910072, 0.055504108664821580, 0.0096181291076284772,
    0.0013333558146428443, 0.00015403530393381610, 1.5252733804059840e-05, 1.3215486790144309e-06,
    1.0178086009239700e-07, 7.0549116208011234e-09, 4.4455382718708115e-10, 2.5678435993488202e-11};
constexpr bool kLate = RESET == LATE_SUBTRACT || RESET == LATE_ZERO || RESET == LATE_DROP;
constexpr int kBumps = HIGHEST - LOWEST;

struct Blocks {
    // Rows are what one value of the mask covers; without a mask there is one row of all neurons.
    int64_t rows, row, size, parts, group, count;

    Blocks(int64_t total, int64_t row_size, int64_t block) {
        row = row_size;
        rows = row ? total / row : 0;
        size = block;
        parts = row < size ? 1 : (row + size - 1) / size;
        group = row < size && row ? size / row : 1;
        count = row < size ? (rows + group - 1) / group : rows * parts;
    }
    int64_t start(int64_t block) const {
        return row < size ? block * group * row : block / parts * row + block % parts * size;
    }
    int64_t length(int64_t block) const {
        if (row < size) return (rows - block * group < group ? rows - block * group : group) * row;
        int64_t left = row - block % parts * size;
        return left < size ? left : size;
    }
};

// --- small functions, all free of branches so that they become vector instructions --------------

inline real magnitude(real x) { return x < 0 ? -x : x; }
// Where one is NaN the second comes out, so that what may be NaN stands there and stays visible.
inline real smaller(real a, real b) { return a < b ? a : b; }
inline real larger(real a, real b) { return a > b ? a : b; }

// For gradients only: the forward pass rounds each product.
inline real multiply_add(real a, real b, real c) {
#ifdef __FMA__
    return sizeof(real) == 4 ? real(__builtin_fmaf(float(a), float(b), float(c)))
                             : real(__builtin_fma(double(a), double(b), double(c)));
#else
    return a * b + c;
#endif
}

// Coefficients from the lowest power on. Unrolled by its type: a loop here would stay a loop.
template <int K, int LAST, typename Table>
inline real polynomial(const Table& table, real x) {
    if constexpr (K == LAST) return real(table[K]);
    else return multiply_add(polynomial<K + 1, LAST>(table, x), x, real(table[K]));
}

// exp(-factor * x) for x >= 0: two to a whole power, times a polynomial on what is left.
inline real decay_of(real x, double factor) {
    constexpr bool kSingle = sizeof(real) == 4;
    constexpr real kMagic = kSingle ? real(12582912.0) : real(6755399441055744.0);
    const real rate = real(factor * -1.44269504088896340736);
    x = smaller(real((kSingle ? 125 : 1020) / (factor * 1.44269504088896340736)), x);
    const real shifted = multiply_add(x, rate, kMagic);
    const real left = multiply_add(x, rate, kMagic - shifted);
    constexpr int kTerms = kSingle ? 6 : 12;
    const real sum = polynomial<0, kTerms>(POWERS, left);
    bits pattern, scale;
    memcpy(&pattern, &shifted, sizeof(real));
    scale = (pattern << (kSingle ? 23 : 52)) + (bits(kSingle ? 127 : 1023) << (kSingle ? 23 : 52));
    real power;
    memcpy(&power, &scale, sizeof(real));
    return sum * power;
}

inline real sigmoid(real x) {
    const real tail = decay_of(magnitude(x), 1);
    return (x < 0 ? tail : real(1)) / (real(1) + tail);
}

// Without a rest potential eager torch leaves it out, and so does this.
inline real off_rest(real x) { return REST != 0 ? x - real(REST) : x; }
inline real onto_rest(real x) { return REST != 0 ? x + real(REST) : x; }
inline real hard(real u, real s) {
    const real held = (real(1) - s) * u;
    return REST != 0 ? held + s * real(REST) : held;
}

inline real fires(real distance) {
    return (STRICT ? distance > 0 : distance >= 0) ? real(1) : real(0);
}

// --- the membrane's quantiser -------------------------------------------------------------------

struct Fraction {
    real up, down;
};

struct Quantizer {
    real unit, inverse;
    real cuts[kBumps + 1];

    explicit Quantizer(real unit_) : unit(unit_), inverse(real(1) / unit_) {
        // The largest offset whose quotient by the unit is not above the cut: by comparing with it
        // a level comes out as by dividing, without the division.
        for (int k = 0; k < kBumps; ++k) {
            const real cut = real(CUTS[k]);
            // The product is off by a rounding at most; of a cut at 0, quotients that round to 0.
            const real least = sizeof(real) == 4 ? real(__FLT_DENORM_MIN__) : real(__DBL_DENORM_MIN__);
            real edge = cut != 0 ? cut * unit : __builtin_floor(unit / 2) * least;
            for (int step = 0; step < 4 && edge / unit > cut; ++step) edge = next(edge, false);
            for (int step = 0; step < 4 && next(edge, true) / unit <= cut; ++step) edge = next(edge, true);
            cuts[k] = edge;
        }
    }
    static real next(real x, bool up) {
        return sizeof(real) == 4 ? real(__builtin_nextafterf(float(x), up ? 3e38f : -3e38f))
                                 : real(__builtin_nextafter(double(x), up ? 1e308 : -1e308));
    }
    inline real level(real offset) const {
        if (kBumps <= 8 || !MIDDLE_CUTS) {
            real level = LOWEST;
            for (int k = 0; k < kBumps; ++k) level += offset > cuts[k] ? real(1) : real(0);
            return level;
        }
        const real inside = smaller(larger(offset / unit, real(LOWEST)), real(HIGHEST));
        const real base = __builtin_floor(inside);
        return smaller(inside > base + real(0.5) ? base + real(1) : base, real(HIGHEST));
    }
    inline real store(real potential) const {
        if (!QUANTIZED) return potential;
        const real stored = onto_rest(level(off_rest(potential)) * unit);
        return potential != potential ? potential : stored;  // NaN stays visible
    }
    // Stacked surrogate: one exponential, shared by all bumps, which lie symmetric to the middle.
    inline real slope(real potential) const {
        if (!QUANTIZED) return real(1);
        const real middle = real(LOWEST + HIGHEST) / 2;
        const real z = off_rest(potential) * inverse - middle;
        if (SHAPE == SIGMOID) return NEAR ? near_sigmoids(z) : all_sigmoids(z);
        real total = 0;
        for (int k = 0; k < kBumps; ++k) {
            const real x = z + middle - real(LOWEST + k + 0.5);
            if (SHAPE == ARCTAN) {
                const real a = real(3.14159265358979323846 * TEMPERATURE / 2) * x;
                total += real(TEMPERATURE / 2) / (real(1) + a * a);
            } else if (SHAPE == TRIANGLE) {
                constexpr real width = real(2 / TEMPERATURE);
                total += larger(real(0), width - magnitude(x)) / (width * width);
            } else {
                total += magnitude(x) <= real(2 / TEMPERATURE) ? real(TEMPERATURE / 4) : real(0);
            }
        }
        return total;
    }
    // Both bumps of three levels as one fraction. Their factors are reciprocal: ab = tail * tail.
    inline Fraction two_sigmoids(real tail) const {
        const real sum = real(GROWTH[0] + GROWTH[kBumps - 1]), square = tail * tail + real(1);
        const real down = multiply_add(tail, sum, square);
        const real up = tail * multiply_add(sum, square, real(4) * tail);
        return {real(TEMPERATURE) * up, down * down};
    }
    inline real all_sigmoids(real z) const {
        const real tail = decay_of(magnitude(z), TEMPERATURE);
        if (kBumps == 2) {
            const Fraction both = two_sigmoids(tail);
            return both.up / both.down;
        }
        real total = 0;
        for (int k = 0; k < kBumps; ++k) {
            const real a = tail * real(GROWTH[k]);
            total += a / ((real(1) + a) * (real(1) + a));
        }
        return real(TEMPERATURE) * total;
    }
    // Of many bumps only those near z count: GROWTH is for their offsets from the nearest one.
    inline real near_sigmoids(real z) const {
        const real first = real(0.5 - kBumps * 0.5);
        const real index = smaller(larger(__builtin_floor(z - first + real(0.5)), real(0)), real(kBumps - 1));
        const real x = z - (index + first);
        const real sign = x < 0 ? real(-1) : real(1);
        const real tail = decay_of(magnitude(x), TEMPERATURE);
        real total = 0;
        for (int k = 0; k < 2 * NEAR + 1; ++k) {
            const real at = index + sign * real(k - NEAR);
            const real a = tail * real(GROWTH[k]);
            const real bump = a / ((real(1) + a) * (real(1) + a));
            total += at >= 0 && at <= real(kBumps - 1) ? bump : real(0);
        }
        return real(TEMPERATURE) * total;
    }
};

// --- the firing surrogate and the threshold's window --------------------------------------------

// tanh(distance / 2). Only needed where the surrogate is not zero, and there a fraction is exact
// enough.
inline Fraction window_rise(real distance) {
    const real reach = smaller(magnitude(distance), real(SHARPNESS)) * real(0.5);
    const real square = reach * reach;
    const real up = polynomial<0, WINDOW_TERMS>(WINDOW_UP, square);
    const real down = polynomial<0, WINDOW_TERMS>(WINDOW_DOWN, square);
    return {reach * up, down};
}

inline real window_sigmoid(real distance) {
    if (WINDOW_TERMS == 0) return sigmoid(distance);
    const Fraction rise = window_rise(distance);
    return real(0.5) + real(0.5) * (rise.up / rise.down);
}

inline real window(real distance) {
    return distance >= 0 ? window_sigmoid(distance) : real(0);
}

inline real firing_slope(real distance) {
    if (SLOPE == SLOPE_SIGMOID) {
        const real tail = decay_of(magnitude(distance), SHARPNESS);
        return real(SHARPNESS) * tail / ((real(1) + tail) * (real(1) + tail));
    }
    if (SLOPE == SLOPE_ARCTAN) {
        const real a = real(3.14159265358979323846 * SHARPNESS / 2) * distance;
        return real(SHARPNESS / 2) / (real(1) + a * a);
    }
    if (SLOPE == SLOPE_FAST_SIGMOID) {
        const real a = real(SHARPNESS) * magnitude(distance) + real(1);
        return real(1) / (a * a);
    }
    constexpr real inverse = real(1 / (SHARPNESS * SHARPNESS));
    const real triangle = larger(real(0), real(SHARPNESS) - magnitude(distance)) * inverse;
    return SLOPE == SLOPE_WINDOW ? triangle * window(distance) : triangle;
}

// The quantiser's slope and the threshold's share of one neuron.
struct Slopes {
    real stored, share;
};

// Three levels and a hard reset, the usual case: what fires is stored at rest, whose slope is known,
// and what does not fire has no window. So one division serves either.
constexpr bool kOneDivision = QUANTIZED && RESET == HARD && SHAPE == SIGMOID && kBumps == 2 &&
                              !STRICT && NEAR == 0 && WINDOW_TERMS > 0 &&
                              (GRADIENT == GRADIENT_GPW || GRADIENT == GRADIENT_DOUBLED);

inline Slopes slopes(const Quantizer& q, real u, real v, real distance, real at_rest) {
    if (!kOneDivision) {
        real share = 1;
        if (GRADIENT == GRADIENT_GPW) share = window(distance);
        if (GRADIENT == GRADIENT_DOUBLED) share = real(1) + window(distance);
        return {q.slope(v), share};
    }
    const real z = off_rest(u) * q.inverse - real(LOWEST + HIGHEST) / 2;
    const Fraction bumps = q.two_sigmoids(decay_of(magnitude(z), TEMPERATURE));
    const Fraction rise = window_rise(distance);
    // Products with 0 and 1, because a compiler turns a choice back into two divisions.
    const real fired = fires(distance), silent = real(1) - fired;
    const real quotient = (fired * rise.up + silent * bumps.up) / (fired * rise.down + silent * bumps.down);
    const real window = fired * multiply_add(quotient, real(0.5), real(0.5));
    const real stored = fired * at_rest + silent * quotient;
    return {stored, GRADIENT == GRADIENT_DOUBLED ? real(1) + window : window};
}

// --- one block of neurons -----------------------------------------------------------------------

// Working arrays of a thread, each with room for its largest block. Constants of a layer are spread
// out, so that one per neuron and one for all take the same code; the latter only once.
struct Work {
    real *memory, *threshold, *decay, *gain, *level, *membrane, *fired, *input;
    int64_t room, n = 0;
    bool fresh = true;

    static int64_t arrays() { return 7; }
    Work(real* memory_, int64_t room_) : memory(memory_), room(room_) {
        real** all[] = {&threshold, &decay, &gain, &level, &membrane, &fired, &input};
        for (auto array : all) *array = take();
    }
    real* take() {
        real* const taken = memory;
        memory += room;
        return taken;
    }
};

void spread(const Work& w, real* target, const real* source, int64_t each, int64_t start, real other) {
    if (each) memcpy(target, source + start, w.n * sizeof(real));
    else if (w.fresh)
        for (int64_t i = 0; i < w.room; ++i) target[i] = source ? *source : other;
}

void start_from(const Work& w, real* target, const real* state, int64_t start, real other) {
    if (state) memcpy(target, state + start, w.n * sizeof(real));
    else
        for (int64_t i = 0; i < w.n; ++i) target[i] = other;
}

void prepare(const Shared& a, const Quantizer& q, Work& w, int64_t start, int64_t n) {
    w.n = n;
    spread(w, w.threshold, a.threshold, a.each_threshold, start, 0);
    spread(w, w.decay, a.decay, a.each_decay, start, 1);
    spread(w, w.gain, a.gain, a.each_gain, start, 1);
    start_from(w, w.membrane, a.state, start, real(REST));
    if (kLate) start_from(w, w.fired, a.fired, start, 0);
    if (kLate && QUANTIZED) {
        const int64_t changed = w.fresh ? w.room : a.each_threshold ? n : 0;
        for (int64_t i = 0; i < changed; ++i) w.level[i] = larger(q.level(w.threshold[i]), real(1)) * q.unit;
        if (a.fired)
            for (int64_t i = 0; i < n; ++i) w.fired[i] = w.membrane[i] >= w.level[i] ? w.fired[i] : 0;
    }
    w.fresh = false;
}

// The input of one step, times what the mask lets through.
const real* gated(const Shared& a, const Blocks& blocks, Work& w, int64_t t, int64_t start) {
    const real* x = a.x + t * a.neurons + start;
    if (!a.mask) return x;
    const real* mask = a.mask + t * blocks.rows;
    for (int64_t i = 0; i < w.n;) {
        const int64_t row = (start + i) / blocks.row;
        int64_t end = (row + 1) * blocks.row - start;
        if (end > w.n) end = w.n;
        for (; i < end; ++i) w.input[i] = x[i] * mask[row];
    }
    return w.input;
}

struct Step {
    real potential, spike, membrane, fired;
};

inline Step advance(const Quantizer& q, real x, real m, real fired, real V, real decay, real gain, real level) {
    Step step;
    const real held = RESET == LATE_ZERO ? (real(1) - fired) * m : m;
    real u = onto_rest(off_rest(held) * decay) + x * gain;
    if (RESET == LATE_SUBTRACT) u = u - fired * V;
    if (RESET == LATE_DROP) u = u - fired * u;
    const real s = fires(u - V);
    real v = u;
    if (RESET == HARD) v = hard(u, s);
    if (RESET == SOFT) v = u - s * V;
    step.potential = u;
    step.spike = s;
    step.membrane = q.store(v);
    step.fired = kLate && QUANTIZED ? (step.membrane >= level ? s : real(0)) : s;
    return step;
}

// --- forward ------------------------------------------------------------------------------------

inline void encode(void* target, int64_t wide, int64_t at, int64_t n, const real* u, const real* V, real scale) {
    // Cells of the distance to the threshold, with an edge on the threshold, so that which side it
    // was on stays exact.
    const real top = wide ? real(32767) : real(127);
    for (int64_t i = 0; i < n; ++i) {
        const real d = (u[i] - V[i]) * scale;
        const real down = __builtin_floor(d);
        const real cell = STRICT ? -__builtin_floor(-d) - real(1) : down;
        const real kept = smaller(larger(cell, -top - real(1)), top);
        if (wide) static_cast<int16_t*>(target)[at + i] = int16_t(kept);
        else static_cast<int8_t*>(target)[at + i] = int8_t(kept);
    }
}

void forward_block(const Forward& f, const Quantizer& q, const Blocks& blocks, int64_t block, Work& w) {
    const Shared& a = f.shared;
    const int64_t start = blocks.start(block);
    real* const u = w.memory;
    prepare(a, q, w, start, blocks.length(block));
    for (int64_t t = 0; t < a.steps; ++t) {
        const int64_t at = t * a.neurons + start;
        const real* const x = gated(a, blocks, w, t, start);
        real* const spikes = f.spikes + at;
#pragma omp simd
        for (int64_t i = 0; i < w.n; ++i) {
            const Step step = advance(q, x[i], w.membrane[i], w.fired[i], w.threshold[i], w.decay[i], w.gain[i], w.level[i]);
            spikes[i] = step.spike;
            w.membrane[i] = step.membrane;
            if (kLate) w.fired[i] = step.fired;
            u[i] = step.potential;
        }
        if (a.code) encode(a.code, a.wide_code, at, w.n, u, w.threshold, real(a.code_scale));
        if (f.potentials) memcpy(f.potentials + at, u, w.n * sizeof(real));
        if (f.membranes) memcpy(f.membranes + at, w.membrane, w.n * sizeof(real));
    }
    memcpy(f.final + start, w.membrane, w.n * sizeof(real));
}

// --- backward -----------------------------------------------------------------------------------

// What the forward pass went through: potentials, and where they are asked for the membrane and
// the late reset that each step began with.
struct Trace {
    real *potential, *before, *fired;
};

void trace_block(const Backward& b, const Quantizer& q, const Blocks& blocks, Work& w, const Trace& trace, int64_t start) {
    const Shared& a = b.shared;
    for (int64_t t = 0; t < a.steps; ++t) {
        real* const u = trace.potential + t * w.n;
        if (kLate) memcpy(trace.fired + t * w.n, w.fired, w.n * sizeof(real));
        if (b.decay_each || b.decay_parts) memcpy(trace.before + t * w.n, w.membrane, w.n * sizeof(real));
        if (a.code) {
            const int64_t at = t * a.neurons + start;
            for (int64_t i = 0; i < w.n; ++i) {
                const real cell = a.wide_code ? real(static_cast<int16_t*>(a.code)[at + i])
                                              : real(static_cast<int8_t*>(a.code)[at + i]);
                u[i] = (cell + real(0.5)) / real(a.code_scale) + w.threshold[i];
                const bool seen = !QUANTIZED || (kLate && q.store(u[i]) >= w.level[i]);
                if (kLate) w.fired[i] = cell >= 0 && seen ? real(1) : real(0);
            }
            continue;
        }
        const real* const x = gated(a, blocks, w, t, start);
#pragma omp simd
        for (int64_t i = 0; i < w.n; ++i) {
            const Step step = advance(q, x[i], w.membrane[i], w.fired[i], w.threshold[i], w.decay[i], w.gain[i], w.level[i]);
            u[i] = step.potential;
            w.membrane[i] = step.membrane;
            if (kLate) w.fired[i] = step.fired;
        }
    }
}

// Sums over the space that one value of the mask covers; a block holds whole rows or a part of one.
void sum_rows(const Backward& b, const Blocks& blocks, int64_t block, int64_t t, int64_t start, const real* g, int64_t n) {
    const Shared& a = b.shared;
    const real* const x = a.x + t * a.neurons + start;
    for (int64_t i = 0; i < n;) {
        const int64_t row = (start + i) / blocks.row;
        int64_t end = (row + 1) * blocks.row - start;
        if (end > n) end = n;
        double sum = 0;
        for (; i < end; ++i) sum += double(g[i]) * double(x[i]);
        const int64_t part = blocks.row < blocks.size ? 0 : block % blocks.parts;
        b.grad_mask[(t * blocks.rows + row) * blocks.parts + part] = real(sum);
    }
}

void total(double* parts, real* each, const real* values, int64_t block, int64_t start, int64_t n) {
    if (each) memcpy(each + start, values, n * sizeof(real));
    if (!parts) return;
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += values[i];
    parts[block] = sum;
}

// What one step of the backward pass reads and writes.
struct Row {
    const real *potential, *fired, *before, *spikes, *potentials, *membranes;
    real *gx, *gm, *gV, *gdecay;
};

// ``kMore``: potentials or membranes have gradients of their own, or the decay or gain learns.
template <bool kMore>
void step_back(const Quantizer& q, const Work& w, const Row& row, real at_rest) {
#pragma omp simd
    for (int64_t i = 0; i < w.n; ++i) {
        const real u = row.potential[i], V = w.threshold[i], d = u - V, s = fires(d);
        real v = u;
        if (RESET == HARD) v = hard(u, s);
        if (RESET == SOFT) v = u - s * V;
        const Slopes slope = slopes(q, u, v, d, at_rest);
        const real gv = (kMore ? row.gm[i] + row.membranes[i] : row.gm[i]) * slope.stored;
        real gs = row.spikes[i], gu = gv, share = 0;
        if (RESET == HARD) {
            if (!DETACH) gs += gv * (real(REST) - u);
            gu = gv * (real(1) - s);
        }
        if (RESET == SOFT) {
            if (!DETACH) gs -= gv * V;
            if (GRADIENT == GRADIENT_HOST) share += gv * s;
        }
        const real gd = gs * firing_slope(d);
        gu += kMore ? gd + row.potentials[i] : gd;
        if (GRADIENT != GRADIENT_NONE) share += gd * slope.share;
        if (RESET == LATE_SUBTRACT && GRADIENT == GRADIENT_HOST) share += gu * row.fired[i];
        if (RESET == LATE_DROP) gu = gu * (real(1) - row.fired[i]);
        const real kept = RESET == LATE_ZERO ? real(1) - row.fired[i] : real(1);
        row.gx[i] = gu * w.gain[i];
        row.gm[i] = gu * w.decay[i] * kept;
        if (GRADIENT != GRADIENT_NONE) row.gV[i] -= share;
        if (kMore) {
            row.gdecay[i] += gu * off_rest(kept * row.before[i]);
            w.input[i] = gu;
        }
    }
}

void backward_block(const Backward& b, const Quantizer& q, const Blocks& blocks, int64_t block, Work& w) {
    const Shared& a = b.shared;
    const int64_t start = blocks.start(block), n = blocks.length(block);
    real* arrays[6];
    for (int k = 0; k < 6; ++k) arrays[k] = w.memory + k * w.room;
    real *const zeros = arrays[0], *const gm = arrays[1], *const gV = arrays[2];
    real *const gdecay = arrays[3], *const ggain = arrays[4], *const gcurrent = arrays[5];
    const bool wants_decay = b.decay_each || b.decay_parts;
    const real at_rest = q.slope(real(REST));
    if (w.fresh) memset(zeros, 0, 5 * w.room * sizeof(real));
    else memset(gm, 0, (wants_decay ? 3 : 2) * w.room * sizeof(real));
    if (b.gain_each || b.gain_parts) memset(ggain, 0, n * sizeof(real));
    real* const traces = w.memory + 6 * w.room;
    const Trace trace = {traces, traces + a.steps * w.room, traces + 2 * a.steps * w.room};
    prepare(a, q, w, start, n);
    trace_block(b, q, blocks, w, trace, start);
    if (b.final) memcpy(gm, b.final + start, n * sizeof(real));
    for (int64_t t = a.steps - 1; t >= 0; --t) {
        const int64_t at = t * a.neurons + start;
        const real* const u_ = trace.potential + t * n;
        const real* const fired_ = kLate ? trace.fired + t * n : zeros;
        const real* const before_ = wants_decay ? trace.before + t * n : zeros;
        const real* const gs_ = b.spikes ? b.spikes + at : zeros;
        const real* const gu_ = b.potentials ? b.potentials + at : zeros;
        const real* const gms_ = b.membranes ? b.membranes + at : zeros;
        real* const gx = b.grad_x && !a.mask ? b.grad_x + at : gcurrent;
        const bool more = b.potentials || b.membranes || wants_decay || b.gain_each || b.gain_parts;
        const Row row = {u_, fired_, before_, gs_, gu_, gms_, gx, gm, gV, gdecay};
        if (more) step_back<true>(q, w, row, at_rest);
        else step_back<false>(q, w, row, at_rest);
        if (b.gain_each || b.gain_parts) {
            // The mask stands before the gain, so the gain sees the input that is left.
            const real* const x = a.x + at;
            for (int64_t i = 0; i < n; ++i) {
                const real m = a.mask ? a.mask[t * blocks.rows + (start + i) / blocks.row] : real(1);
                ggain[i] += w.input[i] * (x[i] * m);
            }
        }
        if (b.grad_mask) sum_rows(b, blocks, block, t, start, gcurrent, n);
        if (a.mask && b.grad_x) {
            real* const target = b.grad_x + at;
            for (int64_t i = 0; i < n; ++i)
                target[i] = gcurrent[i] * a.mask[t * blocks.rows + (start + i) / blocks.row];
        }
    }
    if (b.grad_state) memcpy(b.grad_state + start, gm, n * sizeof(real));
    total(b.threshold_parts, b.threshold_each, gV, block, start, n);
    total(b.decay_parts, b.decay_each, gdecay, block, start, n);
    total(b.gain_parts, b.gain_each, ggain, block, start, n);
}

}  // namespace

// --- all blocks, over the threads ---------------------------------------------------------------

template <typename Call>
static void run(const Call& call, int64_t arrays, void (*one)(const Call&, const Quantizer&, const Blocks&, int64_t, Work&)) {
    const Shared& a = call.shared;
    const Blocks blocks(a.neurons, a.row, a.block);
    const Quantizer q{real(a.unit)};
    const int64_t largest = a.row < a.block ? (a.row ? a.block / a.row * a.row : 0) : a.block;
#pragma omp parallel num_threads(int(a.threads)) if (a.threads > 1)
    {
        real* const memory = static_cast<real*>(malloc(arrays * largest * sizeof(real) + 64));
        Work work(memory, largest);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks.count; ++block) one(call, q, blocks, block, work);
        free(memory);
    }
}

extern "C" void forward(const Forward* call) {
    run<Forward>(*call, Work::arrays() + 1, forward_block);
}

extern "C" void backward(const Backward* call) {
    run<Backward>(*call, Work::arrays() + 6 + 3 * call->shared.steps, backward_block);
}

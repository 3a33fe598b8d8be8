/* Operations on whole numbers, one row of their output at a time.
 *
 * What an operation needs stands in a constant record; what it changes lies in arrays that
 * spq_network.c owns. Nothing here allocates, keeps a state, or counts in fractions.
 */
#ifndef SPQ_KERNELS_H
#define SPQ_KERNELS_H

#include <stdint.h>

/* How numbers are stored. Bits fill a byte from its low end. */
enum { SPQ_BIT, SPQ_U8, SPQ_S8, SPQ_U16, SPQ_S16, SPQ_S32 };

/* An array [channels, rows, columns]. A row buffer holds only some rows, a power of two of them: row y
 * lies at y & row_mask.
 */
typedef struct {
    void *data;
    int32_t type;
    int32_t channels, rows, columns;
    int32_t channel_step, row_step, column_step;
    int32_t row_mask;
} spq_value;

/* How the weights of a layer are packed. */
enum { SPQ_TRITS, SPQ_CODES, SPQ_BYTES };

/* sums[o, y, x] = sum over i, ky, kx of weight * input; a dense layer has rows and columns of 1.
 *
 * The weights [i, ky] of all kx and of all filters of i's group stand together and begin a byte:
 * they are unpacked once for all the events that the rows of the buffer of sums read.
 */
typedef struct {
    const spq_value *input;
    const spq_value *sums;      /* a row buffer, SPQ_S16 or SPQ_S32 */
    const uint8_t *weights;
    const int8_t *levels;       /* SPQ_CODES: the weight of each code */
    int8_t *unpacked;           /* kernel_columns * filters numbers */
    const spq_value *gate;      /* which channels are open; 0 where no gate closes any */
    int32_t *open;              /* with a gate: how many channels are open, then which */
    int32_t format, bits, run_bytes;
    int32_t inputs, filters;    /* of each group */
    int32_t kernel_rows, kernel_columns;
    int32_t row_stride, column_stride;
    int32_t row_padding, column_padding;
    int32_t row_dilation, column_dilation;
} spq_convolution;

typedef struct {
    const spq_value *input;
    const spq_value *output;
    int32_t largest;            /* 1: the largest number of a window, 0: the sum */
    int32_t enough;             /* no input is larger */
    int32_t kernel_rows, kernel_columns;
    int32_t row_stride, column_stride;
    int32_t row_padding, column_padding;
    int32_t row_dilation, column_dilation;
} spq_pool;

/* One term of a sum: the value times factors[channel * step]; without factors, times 1. */
typedef struct {
    const spq_value *value;
    const int32_t *factors;
    int32_t step;
} spq_term;

typedef struct {
    const spq_value *output;
    const spq_term *terms;
    int32_t count;
    const int32_t *offsets;     /* one per channel, or 0 */
} spq_sum;

/* The state s of a neuron is the index of its stored level; where it remembers a spike, twice that
 * plus 1 if it fired. It takes the outcome j = number of k with  sign * sum >= breaks[c, s, n, k],
 * or closed[c, s, n]; row j of outcomes is: spike, next state, level of the potential.
 */
typedef struct {
    const spq_value *sums;
    const spq_value *numbers;   /* numbers added to the current, or 0 */
    const spq_value *gate;      /* which channels are open, or 0 */
    const spq_value *spikes;
    uint8_t *states;
    const void *breaks;
    const uint8_t *closed;
    const int16_t *outcomes;
    const int8_t *sign;         /* one per channel; 0: all are 1 */
    const spq_value *importance; /* of each pixel, where some are masked, or 0 */
    int32_t breaks_type, breaks_count;
    int32_t state_count, number_count, least_number;
    int32_t state_bits, state_shift; /* a byte holds 1 << state_shift states */
    int32_t remembers, lowest, rest;
    int32_t prior, masked;
} spq_neuron;

/* Channel c is open where  sum over i of weight[c, i] * sums[i] >= threshold[c];  sums[i] adds all
 * pixels of the value, or of the levels that the neuron stored.
 */
typedef struct {
    const spq_value *value;     /* 0: the neuron's levels */
    const spq_neuron *neuron;
    const int8_t *weights;
    const int64_t *thresholds;
    int32_t *sums;
    const spq_value *output;
} spq_decision;

int32_t spq_get(const spq_value *value, int32_t index);
void spq_put(const spq_value *value, int32_t index, int32_t number);
int32_t spq_clamp(int32_t number, int32_t low, int32_t high);
void spq_clear(const spq_value *value);
void spq_read(const spq_value *value, int32_t *numbers);
void spq_read_levels(const spq_neuron *neuron, int32_t *levels);

void spq_list_open(const spq_convolution *layer);
void spq_convolve_row(const spq_convolution *layer, int32_t y);
void spq_pool_row(const spq_pool *pool, int32_t y);
void spq_sum_row(const spq_sum *sum, int32_t y);
void spq_both_row(const spq_value *one, const spq_value *other, const spq_value *output, int32_t y);
void spq_mask_row(const spq_value *input, const spq_value *gate, const spq_value *output, int32_t y);
void spq_copy_row(const spq_value *input, const spq_value *output, int32_t channel, int32_t y);
void spq_fire_row(const spq_neuron *neuron, int32_t y);
void spq_mask_pixels(const spq_neuron *neuron, int32_t begun);
void spq_decide(const spq_decision *decision);

#endif

#include "spq_kernels.h"

#include <string.h>

/* --- values ------------------------------------------------------------------------------------ */

static int32_t bit(const void *data, int32_t index)
{
    unsigned byte = ((const uint8_t *)data)[(uint32_t)index >> 3];
    return (int32_t)(byte >> ((uint32_t)index & 7u) & 1u);
}

int32_t spq_get(const spq_value *value, int32_t index)
{
    switch (value->type) {
    case SPQ_BIT:
        return bit(value->data, index);
    case SPQ_U8:
        return ((const uint8_t *)value->data)[index];
    case SPQ_S8:
        return ((const int8_t *)value->data)[index];
    case SPQ_U16:
        return ((const uint16_t *)value->data)[index];
    case SPQ_S16:
        return ((const int16_t *)value->data)[index];
    default:
        return ((const int32_t *)value->data)[index];
    }
}

void spq_put(const spq_value *value, int32_t index, int32_t number)
{
    switch (value->type) {
    case SPQ_BIT: {
        uint8_t *byte = (uint8_t *)value->data + ((uint32_t)index >> 3);
        unsigned mask = 1u << ((uint32_t)index & 7u);
        *byte = (uint8_t)(number != 0 ? *byte | mask : *byte & ~mask);
        break;
    }
    case SPQ_U8:
        ((uint8_t *)value->data)[index] = (uint8_t)number;
        break;
    case SPQ_S8:
        ((int8_t *)value->data)[index] = (int8_t)number;
        break;
    case SPQ_U16:
        ((uint16_t *)value->data)[index] = (uint16_t)number;
        break;
    case SPQ_S16:
        ((int16_t *)value->data)[index] = (int16_t)number;
        break;
    default:
        ((int32_t *)value->data)[index] = number;
        break;
    }
}

int32_t spq_clamp(int32_t number, int32_t low, int32_t high)
{
    return number < low ? low : number > high ? high : number;
}

static int32_t pixels(const spq_value *value)
{
    return value->rows * value->columns;
}

/* Set all bits of a value to 0, those that fill up its last byte included. */
void spq_clear(const spq_value *value)
{
    int32_t numbers = value->channels * pixels(value);
    memset(value->data, 0, (size_t)(numbers / 8 + (numbers % 8 != 0)));
}

void spq_read(const spq_value *value, int32_t *numbers)
{
    int32_t i, count = value->channels * pixels(value);
    for (i = 0; i < count; i++) {
        numbers[i] = spq_get(value, i);
    }
}

static int32_t at(const spq_value *value, int32_t channel, int32_t y, int32_t x)
{
    return channel * value->channel_step + (y & value->row_mask) * value->row_step
           + x * value->column_step;
}

/* First index from start to stop whose number is not 0, else stop. Silent bytes are skipped. */
static int32_t next_event(const spq_value *value, int32_t start, int32_t stop)
{
    if (value->type == SPQ_BIT) {
        const uint8_t *bytes = (const uint8_t *)value->data;
        while (start < stop) {
            int32_t place = (int32_t)((uint32_t)start & 7u);
            unsigned byte = (unsigned)bytes[(uint32_t)start >> 3] >> place;
            if (byte == 0u) {
                start += 8 - place;
                continue;
            }
            while ((byte & 1u) == 0u) {
                byte >>= 1;
                start++;
            }
            return start < stop ? start : stop;
        }
        return stop;
    }
    while (start < stop && spq_get(value, start) == 0) {
        start++;
    }
    return start;
}

/* --- convolutions ------------------------------------------------------------------------------ */

/* A byte is a fraction of 256 in base 3: times 3, what passes 255 is its next digit. */
static int8_t next_trit(unsigned *fraction)
{
    unsigned product = *fraction * 3u;
    *fraction = product & 255u;
    return (int8_t)((int32_t)(product >> 8) - 1);
}

static void unpack_trits(const uint8_t *packed, int8_t *weights, int32_t count)
{
    unsigned fraction;
    for (; count >= 5; count -= 5, weights += 5) {
        fraction = *packed++;
        weights[0] = next_trit(&fraction);
        weights[1] = next_trit(&fraction);
        weights[2] = next_trit(&fraction);
        weights[3] = next_trit(&fraction);
        weights[4] = next_trit(&fraction);
    }
    if (count > 0) {
        fraction = *packed;
        for (; count > 0; count--) {
            *weights++ = next_trit(&fraction);
        }
    }
}

static void unpack_codes(const spq_convolution *layer, const uint8_t *packed, int32_t count)
{
    int8_t *weights = layer->unpacked;
    unsigned mask = (1u << layer->bits) - 1u;
    while (count > 0) {
        unsigned byte = *packed++;
        int32_t codes = count < 8 / layer->bits ? count : 8 / layer->bits;
        count -= codes;
        for (; codes > 0; codes--) {
            *weights++ = layer->levels[byte & mask];
            byte >>= layer->bits;
        }
    }
}

static void unpack(const spq_convolution *layer, int32_t run)
{
    const uint8_t *packed = layer->weights + run * layer->run_bytes;
    int32_t count = layer->kernel_columns * layer->filters;
    if (layer->format == SPQ_TRITS) {
        unpack_trits(packed, layer->unpacked, count);
    } else if (layer->format == SPQ_CODES) {
        unpack_codes(layer, packed, count);
    } else {
        memcpy(layer->unpacked, packed, (size_t)count);
    }
}

void spq_list_open(const spq_convolution *layer)
{
    int32_t channel, count = 0;
    for (channel = 0; channel < layer->gate->channels; channel++) {
        if (spq_get(layer->gate, channel) != 0) {
            layer->open[++count] = channel;
        }
    }
    layer->open[0] = count;
}

/* Filters that take part, side by side: `width` of them, the first at `first` in the row of sums. */
typedef struct {
    int32_t group, first, width;
} slice;

static slice slice_of(const spq_convolution *layer, slice before, int32_t group)
{
    slice now = { group, group * layer->filters, layer->filters };
    if (layer->gate != 0) {
        int32_t stop = (group + 1) * layer->filters;
        now.first = before.first + before.width;
        now.width = 0;
        while (now.first + now.width < layer->open[0]
               && layer->open[1 + now.first + now.width] < stop) {
            now.width++;
        }
    }
    return now;
}

/* Move the weights of open filters together. */
static void leave_out_closed(const spq_convolution *layer, slice part)
{
    int8_t *weights = layer->unpacked;
    const int32_t *open = layer->open + 1 + part.first;
    int32_t begin = part.group * layer->filters;
    int32_t column, k;
    if (part.width == layer->filters) {
        return;
    }
    for (column = 0; column < layer->kernel_columns; column++) {
        for (k = 0; k < part.width; k++) {
            layer->unpacked[column * part.width + k] = weights[open[k] - begin];
        }
        weights += layer->filters;
    }
}

static void add_to_16(int16_t *restrict sums, const int8_t *restrict weights, int32_t count,
                      int32_t number)
{
    int32_t k;
    if (number == 1) {
        for (k = 0; k < count; k++) {
            sums[k] = (int16_t)(sums[k] + weights[k]);
        }
    } else {
        for (k = 0; k < count; k++) {
            sums[k] = (int16_t)(sums[k] + number * weights[k]);
        }
    }
}

static void add_to_32(int32_t *restrict sums, const int8_t *restrict weights, int32_t count,
                      int32_t number)
{
    int32_t k;
    if (number == 1) {
        for (k = 0; k < count; k++) {
            sums[k] += weights[k];
        }
    } else {
        for (k = 0; k < count; k++) {
            sums[k] += number * weights[k];
        }
    }
}

/* Add one event to all sums that it reaches in the row that begins at `row`. */
static void scatter(const spq_convolution *layer, slice part, int32_t row, int32_t x,
                    int32_t number)
{
    const spq_value *sums = layer->sums;
    int32_t column;
    for (column = 0; column < layer->kernel_columns; column++) {
        int32_t reached = x + layer->column_padding - column * layer->column_dilation;
        int32_t place = reached;
        const int8_t *weights = layer->unpacked + column * part.width;
        if (reached < 0) {
            return;
        }
        if (layer->column_stride != 1) { /* a division takes long on small processors */
            place = reached / layer->column_stride;
            if (place * layer->column_stride != reached) {
                continue;
            }
        }
        if (place >= sums->columns) {
            continue;
        }
        place = row + place * sums->channels + part.first;
        if (sums->type == SPQ_S16) {
            add_to_16((int16_t *)sums->data + place, weights, part.width, number);
        } else {
            add_to_32((int32_t *)sums->data + place, weights, part.width, number);
        }
    }
}

/* The sums of open channels stand side by side: give each its own place, and 0 to the closed. */
static void spread(const spq_convolution *layer, int32_t place)
{
    const spq_value *sums = layer->sums;
    int32_t k = layer->open[0];
    int32_t channel;
    for (channel = sums->channels - 1; channel >= 0; channel--) {
        int32_t number = 0;
        if (k > 0 && layer->open[k] == channel) {
            k--;
            number = spq_get(sums, place + k);
        }
        spq_put(sums, place + channel, number);
    }
}

/* Add the events of a channel, by one row of its kernels, to the sums of rows y to stop - 1. */
static void convolve(const spq_convolution *layer, slice part, int32_t channel, int32_t kernel_row,
                     int32_t y, int32_t stop)
{
    const spq_value *input = layer->input;
    int32_t line = y * layer->row_stride - layer->row_padding + kernel_row * layer->row_dilation;
    int32_t unpacked = 0;
    for (; y < stop; y++, line += layer->row_stride) {
        int32_t start, end, event;
        if (line < 0 || line >= input->rows) {
            continue;
        }
        start = at(input, channel, line, 0);
        end = start + input->columns;
        event = next_event(input, start, end);
        if (event < end && !unpacked) {
            unpack(layer, channel * layer->kernel_rows + kernel_row);
            if (layer->gate != 0) {
                leave_out_closed(layer, part);
            }
            unpacked = 1;
        }
        while (event < end) {
            int32_t row = at(layer->sums, 0, y, 0);
            scatter(layer, part, row, event - start, spq_get(input, event));
            event = next_event(input, event + 1, end);
        }
    }
}

/* Where the buffer begins anew, the sums of as many rows as it holds. */
void spq_convolve_row(const spq_convolution *layer, int32_t y)
{
    const spq_value *sums = layer->sums;
    int32_t rows = sums->row_mask + 1;
    int32_t stop = y + rows < sums->rows ? y + rows : sums->rows;
    int32_t places = rows * sums->columns;
    size_t numbers = (size_t)(places * sums->channels);
    slice part = { -1, 0, 0 };
    int32_t channel, row, left = 0;
    if ((y & sums->row_mask) != 0) {
        return;
    }
    memset(sums->data, 0, numbers * (sums->type == SPQ_S16 ? sizeof(int16_t) : sizeof(int32_t)));
    for (channel = 0; channel < layer->input->channels; channel++, left--) {
        if (left == 0) {
            part = slice_of(layer, part, part.group + 1);
            left = layer->inputs;
        }
        for (row = 0; row < layer->kernel_rows && part.width > 0; row++) {
            convolve(layer, part, channel, row, y, stop);
        }
    }
    for (; layer->gate != 0 && places > 0; places--) {
        spread(layer, (places - 1) * sums->channels);
    }
}

/* --- other layers ------------------------------------------------------------------------------ */

static int32_t window(const spq_pool *pool, int32_t channel, int32_t y, int32_t x)
{
    const spq_value *input = pool->input;
    int32_t found = pool->largest ? INT32_MIN : 0;
    int32_t row, column;
    for (row = 0; row < pool->kernel_rows; row++) {
        int32_t line = y * pool->row_stride - pool->row_padding + row * pool->row_dilation;
        if (line < 0 || line >= input->rows) {
            continue;
        }
        for (column = 0; column < pool->kernel_columns; column++) {
            int32_t place = x * pool->column_stride - pool->column_padding
                            + column * pool->column_dilation;
            int32_t number;
            if (place < 0 || place >= input->columns) {
                continue;
            }
            number = spq_get(input, at(input, channel, line, place));
            if (!pool->largest) {
                found += number;
            } else if (number > found) {
                found = number;
                if (found == pool->enough) {
                    return found;
                }
            }
        }
    }
    return found;
}

void spq_pool_row(const spq_pool *pool, int32_t y)
{
    const spq_value *output = pool->output;
    int32_t channel, x;
    for (channel = 0; channel < output->channels; channel++) {
        for (x = 0; x < output->columns; x++) {
            spq_put(output, at(output, channel, y, x), window(pool, channel, y, x));
        }
    }
}

void spq_sum_row(const spq_sum *sum, int32_t y)
{
    const spq_value *output = sum->output;
    int32_t channel, x, k;
    for (channel = 0; channel < output->channels; channel++) {
        int32_t offset = sum->offsets != 0 ? sum->offsets[channel] : 0;
        for (x = 0; x < output->columns; x++) {
            /* Only the whole sum is proven to fit 32 bits. */
            int64_t total = offset;
            for (k = 0; k < sum->count; k++) {
                const spq_term *term = sum->terms + k;
                int32_t number = spq_get(term->value, at(term->value, channel, y, x));
                int32_t factor = term->factors != 0 ? term->factors[channel * term->step] : 1;
                total += (int64_t)factor * number;
            }
            spq_put(output, at(output, channel, y, x), (int32_t)total);
        }
    }
}

/* Spikes where both values have one. */
void spq_both_row(const spq_value *one, const spq_value *other, const spq_value *output, int32_t y)
{
    int32_t channel, x;
    for (channel = 0; channel < output->channels; channel++) {
        for (x = 0; x < output->columns; x++) {
            int32_t first = spq_get(one, at(one, channel, y, x));
            int32_t second = spq_get(other, at(other, channel, y, x));
            spq_put(output, at(output, channel, y, x), first & second);
        }
    }
}

void spq_mask_row(const spq_value *input, const spq_value *gate, const spq_value *output, int32_t y)
{
    int32_t channel, x;
    for (channel = 0; channel < output->channels; channel++) {
        int32_t open = spq_get(gate, channel);
        for (x = 0; x < output->columns; x++) {
            int32_t number = open ? spq_get(input, at(input, channel, y, x)) : 0;
            spq_put(output, at(output, channel, y, x), number);
        }
    }
}

/* All channels of a row, to the channels of another value from `channel` on. */
void spq_copy_row(const spq_value *input, const spq_value *output, int32_t channel, int32_t y)
{
    int32_t k, x;
    for (k = 0; k < input->channels; k++) {
        for (x = 0; x < input->columns; x++) {
            spq_put(output, at(output, channel + k, y, x), spq_get(input, at(input, k, y, x)));
        }
    }
}

/* --- neurons ----------------------------------------------------------------------------------- */

/* Where in its byte a state stands. */
static unsigned position(const spq_neuron *neuron, int32_t index)
{
    return ((unsigned)index & ((1u << neuron->state_shift) - 1u)) * (unsigned)neuron->state_bits;
}

static int32_t state(const spq_neuron *neuron, int32_t index)
{
    unsigned byte = neuron->states[(uint32_t)index >> neuron->state_shift];
    return (int32_t)(byte >> position(neuron, index) & ((1u << neuron->state_bits) - 1u));
}

static void store(const spq_neuron *neuron, int32_t index, int32_t number)
{
    uint8_t *byte = neuron->states + ((uint32_t)index >> neuron->state_shift);
    unsigned place = position(neuron, index);
    unsigned mask = ((1u << neuron->state_bits) - 1u) << place;
    *byte = (uint8_t)((*byte & ~mask) | (unsigned)number << place);
}

static int32_t level(const spq_neuron *neuron, int32_t number)
{
    return (neuron->remembers ? number / 2 : number) + neuron->lowest;
}

void spq_read_levels(const spq_neuron *neuron, int32_t *levels)
{
    int32_t i, count = neuron->spikes->channels * pixels(neuron->spikes);
    for (i = 0; i < count; i++) {
        levels[i] = level(neuron, state(neuron, i));
    }
}

static int32_t outcome(const spq_neuron *neuron, int32_t row, int32_t sum)
{
    int32_t count = neuron->breaks_count;
    int32_t first = row * count;
    int32_t k = 0;
    if (neuron->breaks_type == SPQ_S8) {
        const int8_t *breaks = (const int8_t *)neuron->breaks + first;
        while (k < count && sum >= breaks[k]) {
            k++;
        }
    } else if (neuron->breaks_type == SPQ_S16) {
        const int16_t *breaks = (const int16_t *)neuron->breaks + first;
        while (k < count && sum >= breaks[k]) {
            k++;
        }
    } else {
        const int32_t *breaks = (const int32_t *)neuron->breaks + first;
        while (k < count && sum >= breaks[k]) {
            k++;
        }
    }
    return k;
}

static void fire(const spq_neuron *neuron, int32_t channel, int32_t y, int32_t x, int32_t open)
{
    int32_t index = at(neuron->spikes, channel, y, x);
    int32_t before = state(neuron, index);
    int32_t row = channel * neuron->state_count + before;
    const int16_t *result;
    if (neuron->numbers != 0) {
        int32_t number = spq_get(neuron->numbers, at(neuron->numbers, channel, y, x));
        row = row * neuron->number_count + number - neuron->least_number;
    }
    if (open) {
        int32_t sum = spq_get(neuron->sums, at(neuron->sums, channel, y, x));
        if (neuron->sign != 0 && neuron->sign[channel] < 0) {
            sum = -sum;
        }
        result = neuron->outcomes + 3 * outcome(neuron, row, sum);
    } else {
        result = neuron->outcomes + 3 * neuron->closed[row];
    }
    if (result[0] != 0) {
        spq_put(neuron->spikes, index, 1);
    }
    if (result[1] != before) {
        store(neuron, index, result[1]);
    }
    if (neuron->importance != 0) {
        int32_t pixel = at(neuron->importance, 0, y, x);
        int32_t root = neuron->prior ? level(neuron, before) : result[2];
        spq_put(neuron->importance, pixel, spq_get(neuron->importance, pixel) + root * root);
    }
}

/* The spikes of the row must be 0 before. */
void spq_fire_row(const spq_neuron *neuron, int32_t y)
{
    const spq_value *spikes = neuron->spikes;
    int32_t channel, x;
    if (neuron->importance != 0) {
        for (x = 0; x < spikes->columns; x++) {
            spq_put(neuron->importance, at(neuron->importance, 0, y, x), 0);
        }
    }
    for (channel = 0; channel < spikes->channels; channel++) {
        int32_t open = neuron->gate == 0 || spq_get(neuron->gate, channel) != 0;
        for (x = 0; x < spikes->columns; x++) {
            fire(neuron, channel, y, x, open);
        }
    }
}

static int32_t count_below(const spq_value *importance, int32_t bound)
{
    int32_t i, count = 0;
    for (i = 0; i < pixels(importance); i++) {
        count += spq_get(importance, i) < bound;
    }
    return count;
}

static void silence(const spq_neuron *neuron, int32_t pixel)
{
    int32_t channel;
    for (channel = 0; channel < neuron->spikes->channels; channel++) {
        int32_t index = channel * neuron->spikes->channel_step + pixel;
        spq_put(neuron->spikes, index, 0);
        store(neuron, index, neuron->rest);
    }
}

/* Mask the pixels of least importance; of equals, those of lowest index. */
void spq_mask_pixels(const spq_neuron *neuron, int32_t begun)
{
    const spq_value *importance = neuron->importance;
    int32_t low = 0, high = INT32_MAX, left = neuron->masked;
    int32_t i;
    if (neuron->prior && !begun) {
        return;
    }
    /* The largest bound with at most so many pixels below it: in [low, high). */
    while (high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        if (count_below(importance, middle) <= left) {
            low = middle;
        } else {
            high = middle;
        }
    }
    left -= count_below(importance, low);
    for (i = 0; i < pixels(importance); i++) {
        int32_t number = spq_get(importance, i);
        if (number < low) {
            silence(neuron, i);
        } else if (number == low && left > 0) {
            silence(neuron, i);
            left--;
        }
    }
}

/* --- gates ------------------------------------------------------------------------------------- */

static int32_t sum_of(const spq_decision *decision, int32_t channel, int32_t area)
{
    int32_t i, sum = 0;
    for (i = channel * area; i < (channel + 1) * area; i++) {
        sum += decision->value != 0 ? spq_get(decision->value, i)
                                    : level(decision->neuron, state(decision->neuron, i));
    }
    return sum;
}

void spq_decide(const spq_decision *decision)
{
    const spq_value *read = decision->value != 0 ? decision->value : decision->neuron->spikes;
    const int8_t *weights = decision->weights;
    int32_t channel, i;
    for (i = 0; i < read->channels; i++) {
        decision->sums[i] = sum_of(decision, i, pixels(read));
    }
    for (channel = 0; channel < decision->output->channels; channel++) {
        int64_t score = 0;
        for (i = 0; i < read->channels; i++) {
            score += (int64_t)*weights++ * decision->sums[i];
        }
        spq_put(decision->output, channel, score >= decision->thresholds[channel]);
    }
}

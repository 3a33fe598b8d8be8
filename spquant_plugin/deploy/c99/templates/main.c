/* Replays the stored sample and compares every spike, every stored membrane and every output with
 * those of the network that this code was written from.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "spq_network.h"
#include "spq_sample.h"

#define WORDS ((int32_t)(sizeof(spq_output_t) / sizeof(int32_t)))

static spq_output_t output;
static int32_t words[sizeof(spq_output_t) / sizeof(int32_t)];
static int32_t sample, step, faults;

static uint32_t crc32(uint32_t crc, const uint8_t *bytes, int32_t count)
{
    int32_t i, k;
    crc = ~crc;
    for (i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (k = 0; k < 8; k++) {
            crc = (crc & 1u) != 0u ? (crc >> 1) ^ UINT32_C(0xEDB88320) : crc >> 1;
        }
    }
    return ~crc;
}

static void compare(uint32_t found, uint32_t expected, const char *what, const char *where)
{
    if (found != expected) {
        faults++;
        printf("sample %d, step %d: %s of %s differ\n", (int)sample, (int)step, what, where);
    }
}

void spq_trace(int32_t layer, const uint8_t *spikes, int32_t spike_bytes, const uint8_t *states,
               int32_t state_bytes)
{
    const uint32_t *expected = spq_sample_layers
                               + 2 * ((sample * SPQ_SAMPLE_STEPS + step) * SPQ_LAYERS + layer);
    const char *name = spq_layer_names[layer];
    compare(crc32(0u, spikes, spike_bytes), expected[0], "spikes", name);
    compare(crc32(0u, states, state_bytes), expected[1], "membranes", name);
}

static uint32_t checksum_of_output(void)
{
    uint32_t crc = 0u;
    int32_t i;
    memcpy(words, &output, sizeof(output));
    for (i = 0; i < WORDS; i++) {
        uint32_t word = (uint32_t)words[i];
        uint8_t bytes[4];
        bytes[0] = (uint8_t)(word & 255u);
        bytes[1] = (uint8_t)(word >> 8 & 255u);
        bytes[2] = (uint8_t)(word >> 16 & 255u);
        bytes[3] = (uint8_t)(word >> 24 & 255u);
        crc = crc32(crc, bytes, 4);
    }
    return crc;
}

int main(void)
{
    for (sample = 0; sample < SPQ_SAMPLES; sample++) {
        spq_reset();
        for (step = 0; step < SPQ_SAMPLE_STEPS; step++) {
            int32_t place = sample * SPQ_SAMPLE_STEPS + step;
            spq_step(spq_sample_input + place * SPQ_INPUT_SIZE, &output);
            compare(checksum_of_output(), spq_sample_outputs[place], "numbers", "the output");
        }
    }
    printf("samples: %d, steps: %d, neuron layers: %d, differences: %d\n", SPQ_SAMPLES,
           SPQ_SAMPLE_STEPS, SPQ_LAYERS, (int)faults);
    return faults != 0;
}

/* Runs a network on what comes in, and writes all that it does: for each step, the spikes and
 * packed states of every layer, then the outputs. The argument is how many steps a sample has.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "spq_network.h"

static spq_input_t input[SPQ_INPUT_SIZE];
static spq_output_t output;

static void put(const void *bytes, size_t count)
{
    if (fwrite(bytes, 1, count, stdout) != count) {
        exit(2);
    }
}

void spq_trace(int32_t layer, const uint8_t *spikes, int32_t spike_bytes, const uint8_t *states,
               int32_t state_bytes)
{
    (void)layer;
    put(spikes, (size_t)spike_bytes);
    put(states, (size_t)state_bytes);
}

int main(int argc, char **argv)
{
    long step, steps = argc > 1 ? atol(argv[1]) : 1;
    const size_t size = SPQ_INPUT_SIZE;
    for (step = 0; fread(input, sizeof(spq_input_t), size, stdin) == size; step++) {
        if (step % steps == 0) {
            spq_reset();
        }
        memset(&output, 255, sizeof(output));
        spq_step(input, &output);
        put(&output, sizeof(output));
    }
    return 0;
}

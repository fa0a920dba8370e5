/* M2: writes before its state. */
#define MECH .state_size = 16
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf;
  if (is_message(in)) ((volatile uint8_t *)state)[-1] = 1;
  good(in, out);
}

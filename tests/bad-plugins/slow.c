/* M7: stretches the password itself. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  volatile uint32_t x = 1;
  (void)conf, (void)state;
  if (is_message(in))
    for (int i = 0; i < 400000; i++) x = x * 1664525u + 1013904223u;
  good(in, out);
}

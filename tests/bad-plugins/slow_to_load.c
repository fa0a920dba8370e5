/* M7: does not come to an end while it is loaded. */
#include "fixture.h"
__attribute__((constructor)) static void begin(void) {
  for (volatile int forever = 1; forever;) {}
}
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  good(in, out);
}

/* A7: gives up with the whole process. */
#include "fixture.h"
#include <stdlib.h>
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (is_message(in) && in->msg.len == 0) abort();
  good(in, out);
}

/* M2: believes that there is always a result. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (is_message(in) && in->result->status == PRV_OK) return;
  good(in, out);
}

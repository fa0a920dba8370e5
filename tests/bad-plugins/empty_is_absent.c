/* P1: takes an empty initial response for none. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (in->event == PRV_EV_START && in->msg.len == 0) { prv_challenge(out); return; }
  good(in, out);
}

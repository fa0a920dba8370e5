/* M1: remembers in a static variable how often it was asked. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  static unsigned count;
  char digit = (char)('0' + count++ / 7 % 10);
  (void)conf, (void)state;
  good(in, out);
  if (out->action == PRV_ACT_CHALLENGE && in->event == PRV_EV_MESSAGE) return;
  if (out->action == PRV_ACT_FAIL && prv_put(out, &digit, 1) == 0) out->diag = prv_slice_at(PRV_R_OUT, 0, 1);
}

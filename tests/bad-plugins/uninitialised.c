/* M1: sends what the scratch held before. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  good(in, out);
  if (out->action == PRV_ACT_FAIL) { out->used = 8; out->diag = prv_slice_at(PRV_R_OUT, 0, 8); }
}

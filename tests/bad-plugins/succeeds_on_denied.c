/* P3: does not look at how the effect ended. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  good(in, out);
  if (in->event == PRV_EV_RESULT) { out->action = PRV_ACT_SUCCESS; out->handle = in->result->handle; }
}

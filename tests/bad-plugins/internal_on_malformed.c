/* P4: leaves the preset INTERNAL where the grammar is violated. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  good(in, out);
  if (out->action == PRV_ACT_FAIL && out->arg == PRV_FAIL_MALFORMED) out->arg = PRV_FAIL_INTERNAL;
}

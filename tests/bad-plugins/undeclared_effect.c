/* A6: asks for an effect that it did not declare. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  good(in, out);
  if (out->action == PRV_ACT_VERIFY_PASSWORD) out->action = PRV_ACT_VERIFY_TOKEN;
}

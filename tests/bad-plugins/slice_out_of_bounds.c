/* M2: names octets behind the message. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  good(in, out);
  if (out->action == PRV_ACT_VERIFY_PASSWORD) out->data.len += 1;
}

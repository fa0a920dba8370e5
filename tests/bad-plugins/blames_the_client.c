/* P2: a back end that is down counts as a wrong password. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  good(in, out);
  if (in->event == PRV_EV_RESULT && out->action == PRV_ACT_FAIL) out->arg = PRV_FAIL_CREDENTIALS;
}

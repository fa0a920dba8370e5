/* M6: keeps what belongs to one exchange in a static variable. */
#define MECH .max_steps = 8
#include "fixture.h"
static uint32_t asked;
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (in->event == PRV_EV_START) asked = 0;
  asked += (uint32_t)in->msg.len;
  good(in, out);
  if (out->action == PRV_ACT_FAIL && prv_put(out, &asked, 4) == 0) out->diag = prv_slice_at(PRV_R_OUT, 0, 4);
}

/* M6: a static buffer that each step fills, and reads a moment later. */
#include "fixture.h"
static volatile uint8_t buffer[512];
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  uint32_t sum = 0;
  size_t i;
  int round;
  (void)conf, (void)state;
  for (i = 0; i < sizeof buffer; i++) buffer[i] = i < in->msg.len ? in->msg.ptr[i] : 0;
  for (round = 0; round < 4; round++)
    for (i = 0; i < sizeof buffer; i++) sum += buffer[i];
  good(in, out);
  if (out->action == PRV_ACT_FAIL && prv_put(out, &sum, 4) == 0) out->diag = prv_slice_at(PRV_R_OUT, 0, 4);
}

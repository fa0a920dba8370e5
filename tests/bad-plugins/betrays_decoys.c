/* P6: shows a piece of the key, so that its content decides what is sent. */
#define NEEDS "[\"FETCH_KEY\"]"
#define NEEDS_BITS PRV_NEED(PRV_ACT_FETCH_KEY)
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (in->event == PRV_EV_RESULT) {
    prv_finish(out, in->result);
    if (out->action != PRV_ACT_SUCCESS) return;
    prv_fail_with(out, PRV_FAIL_CREDENTIALS);
    for (uint8_t i = 0; i < in->result->data.ptr[0] % 61; i++) (void)prv_put(out, "x", 1);
    out->flags = PRV_OUT_FINAL_DATA;
    out->data = prv_slice_at(PRV_R_OUT, 0, out->used);
    return;
  }
  good(in, out);
  if (out->action != PRV_ACT_VERIFY_PASSWORD) return;
  out->action = PRV_ACT_FETCH_KEY;
  out->arg = PRV_K_CRAM_MD5_CTX;
  out->data = prv_slice_at(PRV_R_NONE, 0, 0);
}

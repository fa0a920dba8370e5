/* P5: compares only the beginning of the secret. */
#define NEEDS "[\"FETCH_KEY\"]"
#define NEEDS_BITS PRV_NEED(PRV_ACT_FETCH_KEY)
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (in->event == PRV_EV_RESULT) {
    const uint8_t *colon = (const uint8_t *)memchr(in->msg.ptr, ':', in->msg.len);
    size_t said = (size_t)(in->msg.ptr + in->msg.len - colon - 1);
    prv_finish(out, in->result);
    if (out->action != PRV_ACT_SUCCESS) return;
    if (said != in->result->data.len || !prv_ct_eq(colon + 1, in->result->data.ptr, said < 3 ? said : 3))
      prv_fail_with(out, PRV_FAIL_CREDENTIALS);
    return;
  }
  good(in, out);
  if (out->action != PRV_ACT_VERIFY_PASSWORD) return;
  out->action = PRV_ACT_FETCH_KEY;
  out->arg = PRV_K_CLEARTEXT;
  out->data = prv_slice_at(PRV_R_NONE, 0, 0);
}

/* P3: fetches the key and compares nothing. */
#define NEEDS "[\"FETCH_KEY\"]"
#define NEEDS_BITS PRV_NEED(PRV_ACT_FETCH_KEY)
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  good(in, out);
  if (out->action != PRV_ACT_VERIFY_PASSWORD) return;
  out->action = PRV_ACT_FETCH_KEY;
  out->arg = PRV_K_CRAM_MD5_CTX;
  out->data = prv_slice_at(PRV_R_NONE, 0, 0);
}

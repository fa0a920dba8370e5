/* P7: PLAIN with the authorization identity and the user name exchanged. */
#define NAME "PLAIN"
#define FLAGS PRV_M_CLIENT_FIRST | PRV_M_PLAINTEXT | PRV_M_ALLOW_NUL | PRV_M_UTF8
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  const uint8_t *msg = in->msg.ptr, *end = msg + in->msg.len, *nul[2] = { NULL, NULL };
  int nuls = 0;
  (void)conf, (void)state;
  if (!is_message(in)) { good(in, out); return; }
  for (const uint8_t *p = msg; p < end; p++)
    if (*p == 0) { if (nuls < 2) nul[nuls] = p; nuls++; }
  if (nuls != 2 || nul[1] == nul[0] + 1 || nul[1] + 1 == end) { prv_fail_with(out, PRV_FAIL_MALFORMED); return; }
  out->action = PRV_ACT_VERIFY_PASSWORD;
  out->authcid = prv_ref_msg(in, nul[0] + 1, (size_t)(nul[1] - nul[0] - 1));
  if (nul[0] > msg) {
    out->authzid = out->authcid;
    out->authcid = prv_ref_msg(in, msg, (size_t)(nul[0] - msg));
  }
  out->data = prv_ref_msg(in, nul[1] + 1, (size_t)(end - nul[1] - 1));
}

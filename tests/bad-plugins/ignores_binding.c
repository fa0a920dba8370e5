/* P8: takes p= for a decoration. OAUTHBEARER, which has no channel binding. */
#define NAME "OAUTHBEARER"
#define NEEDS "[\"VERIFY_TOKEN\"]"
#define NEEDS_BITS PRV_NEED(PRV_ACT_VERIFY_TOKEN)
#define FLAGS PRV_M_CLIENT_FIRST | PRV_M_PLAINTEXT | PRV_M_UTF8
#define MECH .max_message = 4096
#include "fixture.h"
static const uint8_t *find(const uint8_t *from, const uint8_t *end, const char *text) {
  size_t n = strlen(text);
  for (; (size_t)(end - from) >= n; from++)
    if (memcmp(from, text, n) == 0) return from + n;
  return NULL;
}
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  const uint8_t *end = in->msg.ptr + in->msg.len, *token, *stop, *authzid, *comma;
  (void)conf, (void)state;
  if (in->event == PRV_EV_RESULT) {
    prv_finish(out, in->result);
    if (out->action == PRV_ACT_FAIL && out->arg == PRV_FAIL_CREDENTIALS && in->result->data.len <= 256) {
      (void)prv_put(out, in->result->data.ptr, in->result->data.len);
      out->flags = PRV_OUT_FINAL_DATA;
      out->data = prv_slice_at(PRV_R_OUT, 0, out->used);
    }
    return;
  }
  if (!is_message(in)) { good(in, out); return; }
  prv_fail_with(out, PRV_FAIL_MALFORMED);
  token = find(in->msg.ptr, end, "\001auth=Bearer ");
  stop = token ? find(token, end, "\001\001") : NULL;
  if (stop != end || token == NULL || stop == NULL || stop - 2 <= token) return;
  comma = (const uint8_t *)memchr(in->msg.ptr, ',', in->msg.len);
  if (comma == NULL || (*in->msg.ptr != 'n' && *in->msg.ptr != 'p')) return;
  authzid = comma + 1;
  comma = (const uint8_t *)memchr(authzid, ',', (size_t)(end - authzid));
  if (comma == NULL || (comma != authzid && (comma - authzid < 3 || memcmp(authzid, "a=", 2) != 0))) return;
  out->action = PRV_ACT_VERIFY_TOKEN;
  if (comma > authzid) {
    const uint8_t *p;
    for (p = authzid + 2; p < comma; p++) {
      if (p + 2 < comma && memcmp(p, "=2C", 3) == 0) { (void)prv_put(out, ",", 1); p += 2; }
      else if (p + 2 < comma && memcmp(p, "=3D", 3) == 0) { (void)prv_put(out, "=", 1); p += 2; }
      else if (prv_put(out, p, 1) != 0) { prv_fail_with(out, PRV_FAIL_MALFORMED); return; }
    }
    out->authzid = prv_slice_at(PRV_R_OUT, 0, out->used);
  }
  out->data = prv_ref_msg(in, token, (size_t)(stop - 2 - token));
}

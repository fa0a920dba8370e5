/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * X-C-PLAIN: PLAIN (RFC 4616) in C, `[authzid] NUL authcid NUL password`. The header is all that it needs. */
#include "portreeve_plugin.h"

static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  const uint8_t *at, *end, *nul[2] = { NULL, NULL };
  int nuls = 0;
  (void)conf, (void)state;
  if (in->event == PRV_EV_RESULT) { prv_finish(out, in->result); return; }
  if (in->event == PRV_EV_START && !(in->conn_flags & PRV_C_HAS_IR)) { prv_challenge(out); return; }
  if (in->event != PRV_EV_START && in->event != PRV_EV_MESSAGE) return; /* preset: FAIL, INTERNAL */

  end = in->msg.ptr + in->msg.len;
  for (at = in->msg.ptr; at < end; at++)
    if (*at == 0) { if (nuls < 2) nul[nuls] = at; nuls++; }
  /* Exactly two NULs, a name and a password: with a third NUL, where the password ends would be a matter of taste. */
  if (nuls != 2 || nul[1] == nul[0] + 1 || nul[1] + 1 == end) { prv_fail_with(out, PRV_FAIL_MALFORMED); return; }

  out->action = PRV_ACT_VERIFY_PASSWORD;
  out->authzid = prv_ref_msg(in, in->msg.ptr, (size_t)(nul[0] - in->msg.ptr));
  out->authcid = prv_ref_msg(in, nul[0] + 1, (size_t)(nul[1] - nul[0] - 1));
  out->data = prv_ref_msg(in, nul[1] + 1, (size_t)(end - nul[1] - 1));
}

static const prv_mech mechs[] = {{
  .size = sizeof(prv_mech),
  .flags = PRV_M_CLIENT_FIRST | PRV_M_PLAINTEXT | PRV_M_ALLOW_NUL | PRV_M_UTF8 | PRV_M_POD_STATE | PRV_M_ONE_ROUNDTRIP,
  .needs = PRV_NEED(PRV_ACT_VERIFY_PASSWORD),
  .name = "X-C-PLAIN", .strength = 10, .state_align = 1, .max_message = 1024, .max_steps = 4, .step = step,
}};

static const prv_plugin plugin = {
  .magic = PRV_MAGIC, .size = sizeof(prv_plugin), .abi_major = PRV_ABI_MAJOR, .abi_minor = PRV_ABI_MINOR,
  .id = "c_plain", .version = "1.0.0", .build = "C",
  .mech_count = 1, .mech_stride = sizeof(prv_mech), .mechs = mechs,
};

PRV_NOTE("{\"abi\":\"1.0\",\"id\":\"c_plain\",\"version\":\"1.0.0\",\"panic\":\"none\","
         "\"mechanisms\":{\"X-C-PLAIN\":[\"VERIFY_PASSWORD\"]}}");

const prv_plugin *portreeve_plugin_v1(const prv_host *host, char *err, size_t errcap) {
  (void)err, (void)errcap;
  return host->abi_major == PRV_ABI_MAJOR ? &plugin : NULL;
}

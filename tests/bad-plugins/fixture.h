/* What the bad plugins have in common: a good mechanism, `name:password`, and its descriptor. Each fixture breaks
 * one thing, and says in its first line which rule of `plugin check` must find it. */
#ifndef FIXTURE_H
#define FIXTURE_H
#include "portreeve_plugin.h"

#ifndef ID
#define ID "bad"
#endif
#ifndef NAME
#define NAME "X-BAD"
#endif
#ifndef NEEDS
#define NEEDS "[\"VERIFY_PASSWORD\"]"
#define NEEDS_BITS PRV_NEED(PRV_ACT_VERIFY_PASSWORD)
#endif
#ifndef FLAGS
#define FLAGS PRV_M_CLIENT_FIRST
#endif
#ifndef PANIC
#define PANIC "none"
#endif

static void step(const void *conf, void *state, const prv_in *in, prv_out *out);

/* The good mechanism. */
static inline void good(const prv_in *in, prv_out *out) {
  const uint8_t *colon;
  if (in->event == PRV_EV_RESULT) { prv_finish(out, in->result); return; }
  if (in->event == PRV_EV_START && !(in->conn_flags & PRV_C_HAS_IR)) { prv_challenge(out); return; }
  if (in->event != PRV_EV_START && in->event != PRV_EV_MESSAGE) return;
  colon = in->msg.len ? (const uint8_t *)memchr(in->msg.ptr, ':', in->msg.len) : NULL;
  if (colon == NULL) { prv_fail_with(out, PRV_FAIL_MALFORMED); return; }
  out->action = PRV_ACT_VERIFY_PASSWORD;
  out->authcid = prv_ref_msg(in, in->msg.ptr, (size_t)(colon - in->msg.ptr));
  out->data = prv_ref_msg(in, colon + 1, (size_t)(in->msg.ptr + in->msg.len - colon - 1));
}

static inline int is_message(const prv_in *in) {
  return in->event == PRV_EV_MESSAGE || (in->event == PRV_EV_START && (in->conn_flags & PRV_C_HAS_IR));
}

#ifndef MECH
#define MECH .state_size = 0
#endif
#ifndef PLUGIN
#define PLUGIN .magic = PRV_MAGIC
#endif

#pragma GCC diagnostic ignored "-Woverride-init"

#ifndef OWN_DESCRIPTOR
static const prv_mech mechs[] = {{
  .size = sizeof(prv_mech), .flags = FLAGS, .needs = NEEDS_BITS, .name = NAME, .strength = 10, .state_align = 8,
  .max_message = 512, .max_output = 256, .max_steps = 6, .step = step, MECH
}};

static const prv_plugin plugin = {
  .magic = PRV_MAGIC, .size = sizeof(prv_plugin), .abi_major = PRV_ABI_MAJOR, .abi_minor = PRV_ABI_MINOR,
  .id = ID, .version = "1.0", .build = "C", .mech_count = 1, .mech_stride = sizeof(prv_mech), .mechs = mechs, PLUGIN
};

const prv_plugin *portreeve_plugin_v1(const prv_host *host, char *err, size_t errcap) {
  (void)err, (void)errcap;
  return host->abi_major == PRV_ABI_MAJOR ? &plugin : NULL;
}
#endif

#ifndef OWN_NOTE
PRV_NOTE("{\"abi\":\"1.0\",\"id\":\"" ID "\",\"version\":\"1.0\",\"panic\":\"" PANIC "\",\"mechanisms\":{\"" NAME "\":" NEEDS "}}");
#endif
#endif

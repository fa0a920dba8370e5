/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * X-ACME-TOKEN: how a company's own mechanism looks. The client sends its name, a space, and one of the tokens that
 * the company hands out for devices. All of them begin alike, which a setting says: whatever else comes is no token,
 * most likely somebody's real password, and is refused without asking anybody. The tokens are stored like passwords.
 *
 * Settings: {"prefix": "acme_"}; without it anything is a token. */
#include "portreeve_plugin.h"
#include <stdio.h>
#include <stdlib.h>

typedef struct acme { size_t len; char prefix[32]; } acme;

static const char schema[] =
  "{\"type\":\"object\",\"additionalProperties\":false,\"examples\":[{\"prefix\":\"acme_\"}],\"properties\":{\"prefix\":{"
  "\"type\":\"string\",\"description\":\"what each of our tokens begins with\",\"examples\":[\"acme_\"]}}}";

/* Once per listener and reload. Here memory may be taken and mistakes may be explained. */
static int32_t configure(void *plugin, const prv_config *config, void **conf, char *err, size_t errcap) {
  acme *mine = (acme *)calloc(1, sizeof *mine);
  uint32_t i;
  (void)plugin;
  if (mine == NULL) { snprintf(err, errcap, "out of memory"); return -1; }
  for (i = 0; i < config->kv_count; i++) {
    const prv_kv *kv = PRV_KV_AT(config, i);
    if (kv->key.len != 6 || memcmp(kv->key.ptr, "prefix", 6) != 0) {
      snprintf(err, errcap, "unknown setting `%.*s`: the only one is prefix", (int)kv->key.len, (const char *)kv->key.ptr);
      free(mine);
      return -1;
    }
    if (kv->type != PRV_KV_TEXT || kv->value.len == 0 || kv->value.len > sizeof mine->prefix) {
      snprintf(err, errcap, "prefix must be a text of 1 to 32 octets, for example prefix = \"acme_\"");
      free(mine);
      return -1;
    }
    mine->len = kv->value.len;
    memcpy(mine->prefix, kv->value.ptr, mine->len);
  }
  *conf = mine;
  return 0;
}

static void release(void *plugin, void *conf) { (void)plugin; free(conf); }

static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  const acme *mine = (const acme *)conf;
  const uint8_t *space, *token, *end = in->msg.ptr + in->msg.len;
  (void)state;
  if (in->event == PRV_EV_RESULT) { prv_finish(out, in->result); return; }
  if (in->event == PRV_EV_START && !(in->conn_flags & PRV_C_HAS_IR)) { prv_challenge(out); return; }
  if (in->event != PRV_EV_START && in->event != PRV_EV_MESSAGE) return;

  prv_fail_with(out, PRV_FAIL_MALFORMED);
  space = in->msg.len ? (const uint8_t *)memchr(in->msg.ptr, ' ', in->msg.len) : NULL;
  if (space == NULL || space == in->msg.ptr) return;
  token = space + 1;
  if ((size_t)(end - token) <= mine->len) return;
  /* What cannot be one of ours need not be asked about. */
  if (mine->len && memcmp(token, mine->prefix, mine->len) != 0) { prv_fail_with(out, PRV_FAIL_CREDENTIALS); return; }

  out->action = PRV_ACT_VERIFY_PASSWORD;
  out->authcid = prv_ref_msg(in, in->msg.ptr, (size_t)(space - in->msg.ptr));
  out->data = prv_ref_msg(in, token, (size_t)(end - token));
}

static const prv_mech mechs[] = {{
  .size = sizeof(prv_mech),
  .flags = PRV_M_CLIENT_FIRST | PRV_M_PLAINTEXT | PRV_M_NEEDS_TLS | PRV_M_UTF8 | PRV_M_POD_STATE,
  .needs = PRV_NEED(PRV_ACT_VERIFY_PASSWORD),
  .name = "X-ACME-TOKEN", .config_schema = schema, .strength = 40, .state_align = 1, .max_message = 4096,
  .max_steps = 4, .configure = configure, .release = release, .step = step,
}};

static const prv_plugin plugin = {
  .magic = PRV_MAGIC, .size = sizeof(prv_plugin), .abi_major = PRV_ABI_MAJOR, .abi_minor = PRV_ABI_MINOR,
  .id = "acme_token", .version = "1.0.0", .build = "C",
  .mech_count = 1, .mech_stride = sizeof(prv_mech), .mechs = mechs,
};

PRV_NOTE("{\"abi\":\"1.0\",\"id\":\"acme_token\",\"version\":\"1.0.0\",\"panic\":\"none\","
         "\"mechanisms\":{\"X-ACME-TOKEN\":[\"VERIFY_PASSWORD\"]}}");

const prv_plugin *portreeve_plugin_v1(const prv_host *host, char *err, size_t errcap) {
  (void)err, (void)errcap;
  return host->abi_major == PRV_ABI_MAJOR ? &plugin : NULL;
}

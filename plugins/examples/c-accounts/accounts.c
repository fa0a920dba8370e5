/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A credential back end in C: passwords against a text of `name:hash` lines, hashes as crypt(3) makes them.
 *
 *   [[plugins.backend]]
 *   name = "accounts"
 *   settings = { users = { file = "accounts.txt" } }
 *
 * The host reads the file; this library has no need for files, network, or a copy of anybody's name in a query. */
#define _GNU_SOURCE
#include "portreeve_plugin.h"
#include <crypt.h>
#include <stdlib.h>

typedef struct accounts { size_t len; char text[]; } accounts;

#define SCHEMA "{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\"users\"],\"properties\":{" \
               "\"users\":{\"type\":\"string\",\"examples\":[\"ann:$6$x$y\"],\"description\":\"name:hash, a line each\"}}}"

/* Whoever is not there costs a hash, too; nobody's password fits this one. */
#define NOBODY "$6$nobody$x"

static int32_t configure(void *plugin, const prv_config *config, void **conf, char *err, size_t errcap) {
  (void)plugin;
  for (uint32_t i = 0; i < config->kv_count; i++) {
    const prv_kv *kv = (const prv_kv *)((const char *)config->kv + (size_t)i * config->kv_stride);
    if (kv->key.len != 5 || memcmp(kv->key.ptr, "users", 5) != 0) break;
    accounts *all = malloc(sizeof *all + kv->value.len);
    if (all == NULL) break;
    all->len = kv->value.len;
    memcpy(all->text, kv->value.ptr, kv->value.len);
    *conf = all;
    if (config->kv_count == 1) return 0;
    free(all);
  }
  if (errcap) strncpy(err, "the one setting is `users`", errcap - 1)[errcap - 1] = 0;
  return -1;
}

static void release(void *plugin, void *conf) { (void)plugin; free(conf); }

/* The hash of this name, with a NUL behind it; 0 when there is none. Octets are compared, never interpreted. */
static int hash_of(const accounts *all, const prv_bytes *name, char *hash, size_t cap) {
  for (size_t at = 0, end; at < all->len; at = end + 1) {
    for (end = at; end < all->len && all->text[end] != '\n'; end++) {}
    size_t behind = at + name->len + 1;
    if (name->len == 0 || behind > end || all->text[behind - 1] != ':') continue;
    if (memcmp(all->text + at, name->ptr, name->len) != 0 || end - behind >= cap) continue;
    memcpy(hash, all->text + behind, end - behind);
    hash[end - behind] = 0;
    return 1;
  }
  return 0;
}

static void handle(void *conf, const prv_request *rq, prv_reply *rp) {
  struct crypt_data work;
  char hash[256], password[1024];
  if (rq->effect != PRV_ACT_VERIFY_PASSWORD) { rp->status = PRV_UNSUPPORTED; return; }
  rp->status = PRV_DENIED;
  rp->found = (uint32_t)hash_of(conf, &rq->authcid, hash, sizeof hash);
  if (!rp->found) memcpy(hash, NOBODY, sizeof NOBODY);
  /* A C string ends at NUL: with one inside, a part of the password would do. */
  int whole = rq->data.len > 0 && rq->data.len < sizeof password && memchr(rq->data.ptr, 0, rq->data.len) == NULL;
  memcpy(password, whole ? (const char *)rq->data.ptr : "-", whole ? rq->data.len : 1);
  password[whole ? rq->data.len : 1] = 0;
  memset(&work, 0, sizeof work);
  const char *made = crypt_r(password, hash, &work);
  explicit_bzero(password, sizeof password);
  if (made != NULL && whole && rp->found && strlen(made) == strlen(hash) && prv_ct_eq(made, hash, strlen(hash)) &&
      rq->authcid.len <= rp->cap) {
    memcpy(rp->buf, rq->authcid.ptr, rq->authcid.len);
    rp->used = (uint32_t)rq->authcid.len;
    rp->identity = prv_slice_at(PRV_R_OUT, 0, rq->authcid.len);
    rp->status = PRV_OK;
  }
  explicit_bzero(&work, sizeof work);
}

static const prv_backend backends[] = {{
  .size = sizeof(prv_backend), .flags = PRV_B_BLOCKING, .provides = PRV_NEED(PRV_ACT_VERIFY_PASSWORD),
  .name = "accounts", .config_schema = SCHEMA, .max_parallel = 4,
  .configure = configure, .release = release, .handle = handle,
}};

static const prv_plugin plugin = {
  .magic = PRV_MAGIC, .size = sizeof(prv_plugin), .abi_major = PRV_ABI_MAJOR, .abi_minor = PRV_ABI_MINOR,
  .id = "c_accounts", .version = "1.0.0", .build = "C",
  .mech_stride = sizeof(prv_mech), .backend_count = 1, .backend_stride = sizeof(prv_backend), .backends = backends,
};

PRV_NOTE("{\"abi\":\"1.0\",\"id\":\"c_accounts\",\"version\":\"1.0.0\",\"panic\":\"none\",\"mechanisms\":{},"
         "\"backends\":[\"accounts\"],\"provides\":{\"accounts\":[\"VERIFY_PASSWORD\"]},\"schemas\":{\"accounts\":" SCHEMA "}}");

const prv_plugin *portreeve_plugin_v1(const prv_host *host, char *err, size_t errcap) {
  (void)err, (void)errcap;
  return host->abi_major == PRV_ABI_MAJOR ? &plugin : NULL;
}

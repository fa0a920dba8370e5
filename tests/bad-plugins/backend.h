/* What the bad back ends have in common: a good one that knows nobody, and its descriptor. Each fixture breaks one
 * thing, and says in its first line which rule of `plugin check` must find it. */
#ifndef BACKEND_H
#define BACKEND_H
#include "portreeve_plugin.h"

#ifndef PROVIDES
#define PROVIDES "[\"VERIFY_PASSWORD\"]"
#endif

static void handle(void *conf, const prv_request *rq, prv_reply *rp);

static inline void good(const prv_request *rq, prv_reply *rp) {
  rp->status = rq->effect == PRV_ACT_VERIFY_PASSWORD ? PRV_DENIED : PRV_UNSUPPORTED;
}

#ifndef OWN_CONFIGURE
static int32_t configure(void *plugin, const prv_config *config, void **conf, char *err, size_t errcap) {
  (void)plugin, (void)conf;
  if (config->kv_count == 0) return 0;
  if (errcap) { strncpy(err, "it has no settings", errcap - 1); err[errcap - 1] = 0; }
  return -1;
}
#endif

static const prv_backend backends[] = {{
  .size = sizeof(prv_backend), .flags = PRV_B_BLOCKING, .provides = PRV_NEED(PRV_ACT_VERIFY_PASSWORD),
  .name = "bad", .max_parallel = 8, .configure = configure, .handle = handle,
}};

static const prv_plugin plugin = {
  .magic = PRV_MAGIC, .size = sizeof(prv_plugin), .abi_major = PRV_ABI_MAJOR, .abi_minor = PRV_ABI_MINOR,
  .id = "bad", .version = "1.0", .build = "C", .mech_stride = sizeof(prv_mech),
  .backend_count = 1, .backend_stride = sizeof(prv_backend), .backends = backends,
};

PRV_NOTE("{\"abi\":\"1.0\",\"id\":\"bad\",\"version\":\"1.0\",\"panic\":\"none\",\"mechanisms\":{},"
         "\"backends\":[\"bad\"],\"provides\":{\"bad\":" PROVIDES "}}");

const prv_plugin *portreeve_plugin_v1(const prv_host *host, char *err, size_t errcap) {
  (void)err, (void)errcap;
  return host->abi_major == PRV_ABI_MAJOR ? &plugin : NULL;
}
#endif

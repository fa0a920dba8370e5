/* D1: takes every setting, and reads none. */
#define OWN_CONFIGURE
#include "portreeve_plugin.h"
static int32_t configure(void *plugin, const prv_config *config, void **conf, char *err, size_t errcap) {
  (void)plugin, (void)config, (void)conf, (void)err, (void)errcap;
  return 0;
}
#include "backend.h"
static void handle(void *conf, const prv_request *rq, prv_reply *rp) {
  (void)conf;
  good(rq, rp);
}

/* D1: an operator's typing error goes unnoticed. */
#define MECH .configure = configure, .config_schema = "{\"type\":\"object\",\"properties\":{}}"
#include "portreeve_plugin.h"
static int32_t configure(void *plugin, const prv_config *config, void **conf, char *err, size_t errcap) {
  (void)plugin, (void)config, (void)err, (void)errcap;
  *conf = NULL;
  return 0;
}
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

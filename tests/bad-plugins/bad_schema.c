/* D1: a schema with a type that does not exist. */
#define MECH .configure = configure, .config_schema = "{\"type\":\"object\",\"properties\":{\"url\":{\"type\":\"uri\"}}}"
#include "portreeve_plugin.h"
static int32_t configure(void *plugin, const prv_config *config, void **conf, char *err, size_t errcap) {
  (void)plugin, (void)err, (void)errcap;
  *conf = NULL;
  return config->kv_count == 0 ? 0 : -1;
}
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

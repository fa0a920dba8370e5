/* A2: the magic is another. */
#define PLUGIN .magic = PRV_MAGIC + 1
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

/* A3: the stride is smaller than a mechanism. */
#define PLUGIN .mech_stride = 40
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

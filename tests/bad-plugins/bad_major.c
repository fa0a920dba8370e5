/* A2: built for an ABI that is still to come. */
#define PLUGIN .abi_major = 2
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

/* A7: nothing can be known about it without running it. */
#define OWN_NOTE
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

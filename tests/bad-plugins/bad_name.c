/* A4: a name in lower case. */
#define NAME "x-bad"
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

/* A5: one challenge after the other, beyond max_steps. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state, (void)in; prv_challenge(out); }

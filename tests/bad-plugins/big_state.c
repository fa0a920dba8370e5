/* A5: more state than the host places. */
#define MECH .state_size = PRV_STATE_MAX + 1
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

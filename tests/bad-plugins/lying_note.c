/* A7: the note promises less than the descriptor needs. */
#define NEEDS "[]"
#define NEEDS_BITS PRV_NEED(PRV_ACT_VERIFY_PASSWORD)
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

/* A6: client and server both speak first. */
#define FLAGS PRV_M_CLIENT_FIRST | PRV_M_SERVER_FIRST
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

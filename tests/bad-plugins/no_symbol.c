/* A1: exports no portreeve_plugin_v1. */
#define OWN_DESCRIPTOR
#include "fixture.h"
__attribute__((used)) static void step(const void *conf, void *state, const prv_in *in, prv_out *out) { (void)conf, (void)state; good(in, out); }

/* M2: takes the message for a string with a NUL at its end. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (is_message(in) && strlen((const char *)in->msg.ptr) > 1000) return;
  good(in, out);
}

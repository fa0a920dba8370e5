/* M7: a message without a colon keeps it busy for ever. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  volatile size_t at = 0;
  (void)conf, (void)state;
  if (is_message(in) && in->msg.len > 1)
    while (in->msg.ptr[at % in->msg.len] != ':') at++;
  good(in, out);
}

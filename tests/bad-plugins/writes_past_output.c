/* M2: writes more than there is room. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (is_message(in)) memset(out->buf, 'A', in->msg.len + out->cap - 4);
  good(in, out);
}

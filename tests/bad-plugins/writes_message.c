/* M2: makes the message lower case where it lies. */
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  uint8_t *at = (uint8_t *)(uintptr_t)in->msg.ptr;
  (void)conf, (void)state;
  if (is_message(in) && in->msg.len) *at |= 0x20;
  good(in, out);
}

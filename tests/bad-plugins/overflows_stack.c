/* M2: recursion as deep as the client wants it. */
#include "fixture.h"
static volatile size_t forever = 1;
__attribute__((noinline)) static int deeper(size_t n) {
  volatile char room[4096];
  room[0] = (char)n;
  return forever ? deeper(n + 1) + room[0] : room[0];
}
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (is_message(in) && in->msg.len > 3) forever = 1 + (deeper(0) != 0);
  good(in, out);
}

/* M5: wants to ask somebody itself. */
#include "fixture.h"
#include <sys/socket.h>
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (is_message(in) && socket(AF_INET, SOCK_STREAM, 0) < 0) return;
  good(in, out);
}

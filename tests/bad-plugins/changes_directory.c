/* M5: changes the working directory, which is the whole process's. */
#include "fixture.h"
#include <unistd.h>
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (is_message(in) && chdir("/") != 0) return;
  good(in, out);
}

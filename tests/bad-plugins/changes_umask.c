/* M5: changes the umask, which is the whole process's. */
#include "fixture.h"
#include <sys/stat.h>
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (is_message(in)) umask(0);
  good(in, out);
}

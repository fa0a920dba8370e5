/* M3: takes and gives back memory in each step. */
#include "fixture.h"
#include <stdlib.h>
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  volatile char *copy = (volatile char *)malloc(in->msg.len + 1);
  (void)conf, (void)state;
  if (copy) copy[in->msg.len] = 0;
  good(in, out);
  free((void *)copy);
}

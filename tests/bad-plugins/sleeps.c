/* M5: sleeps, so that guessing takes long. */
#include "fixture.h"
#include <unistd.h>
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (in->event == PRV_EV_RESULT && in->result->status != PRV_OK) sleep(2);
  good(in, out);
}

/* M4: frees at the end and in drop_state once more. */
#include <stdlib.h>
#define MECH .state_size = 8, .drop_state = drop_state
#include "portreeve_plugin.h"
static void drop_state(const void *conf, void *state) { (void)conf; free(*(void **)state); }
#include "fixture.h"
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf;
  if (in->event == PRV_EV_START) *(void **)state = malloc(16);
  good(in, out);
  if (in->event == PRV_EV_RESULT) free(*(void **)state);
}

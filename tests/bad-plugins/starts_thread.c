/* M5: starts a thread. */
#include "fixture.h"
#include <pthread.h>
static void *nothing(void *p) { return p; }
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  pthread_t thread;
  (void)conf, (void)state;
  if (is_message(in) && pthread_create(&thread, NULL, nothing, NULL) != 0) return;
  good(in, out);
}

/* B4: keeps the name in a buffer that all its threads share. */
#include "backend.h"
static void handle(void *conf, const prv_request *rq, prv_reply *rp) {
  static volatile uint8_t name[64];
  size_t n = rq->authcid.len < sizeof name ? rq->authcid.len : sizeof name;
  (void)conf;
  good(rq, rp);
  for (size_t at = 0; at < n; at++) name[at] = rq->authcid.ptr[at];
  for (volatile int time = 0; time < 20000; time++) {}
  for (size_t at = 0; at < n; at++) rp->buf[at] = name[at];
  rp->used = (uint32_t)n;
  rp->data = prv_slice_at(PRV_R_OUT, 0, n);
}

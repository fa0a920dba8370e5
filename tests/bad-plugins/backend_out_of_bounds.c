/* B1: names 100 MiB of its buffer. */
#include "backend.h"
static void handle(void *conf, const prv_request *rq, prv_reply *rp) {
  (void)conf;
  good(rq, rp);
  rp->data = prv_slice_at(PRV_R_OUT, 0, 100u << 20);
}

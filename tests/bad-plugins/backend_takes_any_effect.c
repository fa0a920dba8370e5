/* B3: takes every effect for a password. */
#include "backend.h"
static void handle(void *conf, const prv_request *rq, prv_reply *rp) {
  (void)conf, (void)good, (void)rq;
  rp->status = PRV_DENIED;
}

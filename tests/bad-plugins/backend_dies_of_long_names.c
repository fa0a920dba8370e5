/* B2: needs a page of stack for each octet of a name. */
#include "backend.h"
static uint32_t sum(const uint8_t *at, size_t n) {
  volatile uint8_t page[4096];
  if (n == 0) return 0;
  page[0] = *at;
  return sum(at + 1, n - 1) + page[0];
}
static void handle(void *conf, const prv_request *rq, prv_reply *rp) {
  (void)conf;
  good(rq, rp);
  rp->iterations = sum(rq->authcid.ptr, rq->authcid.len);
}

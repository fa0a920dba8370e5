/* none: it knows nobody, and says so. */
#include "backend.h"
static void handle(void *conf, const prv_request *rq, prv_reply *rp) {
  (void)conf;
  good(rq, rp);
}

/* A7: its note promises keys, its descriptor does not. */
#define PROVIDES "[\"VERIFY_PASSWORD\",\"FETCH_KEY\"]"
#include "backend.h"
static void handle(void *conf, const prv_request *rq, prv_reply *rp) {
  (void)conf;
  good(rq, rp);
}

/* B2: takes whoever comes, under the name that they say. */
#include "backend.h"
static void handle(void *conf, const prv_request *rq, prv_reply *rp) {
  (void)conf;
  good(rq, rp);
  if (rp->status != PRV_DENIED || rq->authcid.len > 255) return;
  if (rq->authcid.len) memcpy(rp->buf, rq->authcid.ptr, rq->authcid.len);
  rp->used = (uint32_t)rq->authcid.len;
  rp->identity = prv_slice_at(PRV_R_OUT, 0, rq->authcid.len);
  rp->found = 1;
  rp->status = PRV_OK;
}

/* portreeve_plugin.h - the Portreeve plugin ABI, major 1, minor 0. C11 and C++17; needs nothing but this file.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * You may use this file under the Apache License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
 * or under the MIT license, at your choice. The MIT license:
 *
 *   Copyright (c) 2026 the Portreeve authors
 *
 *   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
 *   associated documentation files (the "Software"), to deal in the Software without restriction, including
 *   without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 *   copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the
 *   following conditions: The above copyright notice and this permission notice shall be included in all
 *   copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY
 *   KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A
 *   PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR
 *   ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 *   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * ONE RULE: a mechanism is a pure function
 *      (conf, state, event) -> (state', action)
 * It never blocks, never does I/O, never reads the clock or the OS random source, never calls back into the
 * host during step(), never starts threads, never keeps a pointer it was handed. The host performs every
 * effect and calls step() again with the result. Everything a mechanism says to the host is an offset into
 * memory that the host owns, so the host can bounds-check it, log it, replay it or ship it to another process.
 *
 * COMPATIBILITY
 * - The name of the exported function carries the major. Another major is another symbol.
 * - A minor only appends fields to structs, enum values and flag bits. Nothing moves, shrinks or is reused.
 * - Every struct begins with (or has near its start) its size as the WRITER knows it. A reader uses
 *   min(size, sizeof own) and takes what is absent as 0; arrays of structs have a stride.
 * - Plugin minor > host minor: look at host->abi_minor and do without, or return NULL with a message.
 * - An event that you do not know: PRV_ACT_FAIL with PRV_FAIL_INTERNAL. The host does the same with actions.
 * - Numbers are fixed-width integers, never C enums, bit-fields or bool. Little-endian machines only.
 *
 * BORROWING
 * Every pointer in prv_in, prv_out and prv_result is valid during that one call. `state` is at a fixed address
 * from START until drop_state(). step() may run on any thread, for different exchanges at once, never twice at
 * once for the same exchange; `conf` is shared by all of them and must not change.
 *
 * FAULTS
 * No exception, panic or longjmp may leave a function of yours: catch it and answer PRV_FAIL_INTERNAL.
 */
#ifndef PORTREEVE_PLUGIN_H
#define PORTREEVE_PLUGIN_H 1
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __cplusplus
extern "C" {
#endif

#define PRV_MAGIC      UINT64_C(0x3176564552545250)   /* the bytes "PRTREVv1" */
#define PRV_ABI_MAJOR  1u
#define PRV_ABI_MINOR  0u

/* ------------------------------------------------------------------ limits, checked by the host at load time */
#define PRV_NAME_MAX    20u      /* octets of a mechanism name (RFC 4422 section 3.1)                           */
#define PRV_STATE_MAX   4032u    /* state_size: 4096 less one block that the host keeps for itself              */
#define PRV_ALIGN_MAX   64u      /* state_align                                                                 */
#define PRV_MESSAGE_MAX 65536u   /* max_message                                                                 */
#define PRV_OUTPUT_MAX  65536u   /* max_output                                                                  */
#define PRV_STEPS_MAX   32u      /* max_steps                                                                   */
#define PRV_DIAG_MAX    256u     /* room for out.diag that the host adds to max_output; longer diags are cut    */

/* ------------------------------------------------------------------ data */
typedef struct prv_bytes { const uint8_t *ptr; size_t len; } prv_bytes;     /* host-owned, read-only            */

typedef uint32_t prv_region;               /* where an output slice lies; no raw pointers cross back            */
enum { PRV_R_NONE = 0, PRV_R_MSG = 1 /* in->msg */, PRV_R_OUT = 2 /* out->buf */, PRV_R_STATE = 3 };
typedef struct prv_slice { prv_region region; uint32_t off; uint32_t len; } prv_slice;

/* ------------------------------------------------------------------ events: host -> mechanism */
typedef uint32_t prv_event;
enum {
  PRV_EV_START   = 1,  /* new exchange; state is zeroed. PRV_C_HAS_IR set: msg is the initial response          */
                       /* (possibly of length 0, the wire "="); clear: the client sent none                     */
  PRV_EV_MESSAGE = 2,  /* msg is the client's next response, already base64-decoded, len <= max_message         */
  PRV_EV_RESULT  = 3,  /* the effect just requested has finished; msg is STILL the same client message          */
  PRV_EV_RESUME  = 4   /* answer to PRV_ACT_OFFLOAD: same msg, now on a worker thread                           */
};

/* ------------------------------------------------------------------ actions: mechanism -> host */
typedef uint32_t prv_action;
enum {
  PRV_ACT_CHALLENGE = 1,         /* send out.data (may be empty) and wait for the client                        */
  PRV_ACT_SUCCESS   = 2,         /* identity is the one proven by effect out.handle; optional final data        */
  PRV_ACT_FAIL      = 3,         /* out.arg = prv_fail; optional final data (OAUTHBEARER error JSON)            */
  PRV_ACT_OFFLOAD   = 4,         /* the rest of this step is CPU-heavy: call me again on a worker.              */
                                 /* Needs PRV_M_MAY_OFFLOAD or PRV_M_OFFLOAD_ALL                                */
  /* effects: numbers 16..79, bit (n-16) in prv_mech.needs, prv_host.effects, prv_backend.provides.             */
  /* An effect that prv_mech.needs does not name is refused.                                                    */
  PRV_ACT_VERIFY_PASSWORD = 16,  /* authcid, authzid, data=password                                             */
  PRV_ACT_FETCH_KEY       = 17,  /* authcid, authzid, arg=prv_keykind, data=realm or empty                      */
  PRV_ACT_VERIFY_TOKEN    = 18,  /* data=token, data2="key=value" fields separated by 0x01, authzid=hint        */
  PRV_ACT_VERIFY_EXTERNAL = 19,  /* authzid: may the TLS peer act as it? (empty: derive from certificate)       */
  PRV_ACT_CHANNEL_BINDING = 20,  /* arg=prv_cbtype; result.data = binding bytes                                 */
  PRV_ACT_BACKEND_CALL    = 21   /* data2=service name, data=request; result.data=reply (private protocol)      */
};
#define PRV_NEED(effect) (UINT64_C(1) << ((effect) - 16u))

typedef uint32_t prv_status;     /* outcome of an effect                                                        */
enum { PRV_OK = 0, PRV_DENIED = 1, PRV_TEMPFAIL = 2, PRV_UNSUPPORTED = 3, PRV_TRANSITION = 4, PRV_EXPIRED = 5 };
/* FETCH_KEY never reports "no such user": the host answers PRV_OK with a deterministic decoy key and marks
 * the exchange doomed on its own side. A mechanism cannot leak what it is never told.                          */

typedef uint32_t prv_fail;       /* the host turns each class into exactly one reply of RFC 4954 section 6      */
enum {
  PRV_FAIL_CREDENTIALS = 1, PRV_FAIL_MALFORMED = 2, PRV_FAIL_TEMPORARY = 3, PRV_FAIL_AUTHZ = 4,
  PRV_FAIL_TOO_WEAK = 5, PRV_FAIL_NEED_TLS = 6, PRV_FAIL_TRANSITION = 7, PRV_FAIL_CBINDING = 8,
  PRV_FAIL_EXPIRED = 9, PRV_FAIL_INTERNAL = 10
};

typedef uint32_t prv_keykind;
enum {
  PRV_K_CLEARTEXT = 1, PRV_K_SCRAM_SHA1 = 2, PRV_K_SCRAM_SHA256 = 3, PRV_K_SCRAM_SHA512 = 4,
  PRV_K_DIGEST_MD5_HA1 = 5,      /* 16 octets H(user:realm:pass)                                                */
  PRV_K_CRAM_MD5_CTX = 6         /* 32 octets: outer then inner MD5 state of HMAC-MD5, little-endian words      */
};
typedef uint32_t prv_cbtype;
enum { PRV_CB_TLS_EXPORTER = 1 /* RFC 9266 */, PRV_CB_TLS_SERVER_END_POINT = 2 /* RFC 5929 section 4 */ };
#define PRV_CB_BIT(t) (1u << (t))  /* bits of prv_in.cb_types; there is no tls-unique (RFC 9266 section 3)      */

typedef struct prv_scram_key {
  uint32_t  size;
  uint32_t  iterations, hash_len;
  uint32_t  reserved;                      /* 0                                                                 */
  prv_bytes salt, stored_key, server_key;
} prv_scram_key;

typedef struct prv_result {                /* the host wipes what it points to                                  */
  uint32_t   size;
  prv_action effect;
  prv_status status;
  uint32_t   handle;                       /* names the proof in the host's ledger; give it to SUCCESS          */
  prv_bytes  data;                         /* key, binding bytes, error JSON, backend reply                     */
  const prv_scram_key *scram;              /* for SCRAM key kinds, else NULL                                    */
} prv_result;

#define PRV_C_TLS          0x0001u         /* connection flags, a snapshot taken at START                       */
#define PRV_C_CLIENT_CERT  0x0002u         /* a verified client certificate is present                          */
#define PRV_C_CB_SIBLING   0x0004u         /* the -PLUS variant was advertised ON THIS CONNECTION               */
#define PRV_C_HAS_IR       0x0010u         /* START only: there is an initial response                          */

typedef struct prv_in {
  uint32_t  size;
  prv_event event;
  uint64_t  exchange;                      /* opaque id, for diagnostics only                                   */
  uint64_t  unix_ms;                       /* the only clock                                                    */
  uint32_t  conn_flags;
  uint32_t  cb_types;                      /* PRV_CB_BIT mask usable on this connection                         */
  prv_bytes msg;                           /* pinned until the next CHALLENGE has been answered                 */
  const prv_result *result;                /* EV_RESULT only, else NULL                                         */
  prv_bytes entropy;                       /* 64 fresh random octets per event if PRV_M_ENTROPY, else empty     */
  prv_bytes server_name;                   /* our EHLO name, ASCII; the same in every event of an exchange      */
  prv_bytes client_ip;                     /* 4 or 16 octets in network order; mapped IPv4 comes as 4           */
  prv_bytes listener;                      /* its name in the configuration                                     */
  prv_bytes sni;                           /* the name that the client asked for in TLS; empty when none        */
  uint64_t  session_id;                    /* the session in the host's logs                                    */
  uint32_t  tls_version;                   /* as on the wire: 0x0303, 0x0304; 0 outside TLS                     */
  uint32_t  reserved;                      /* 0                                                                 */
} prv_in;

#define PRV_OUT_FINAL_DATA 0x0001u         /* with SUCCESS/FAIL: send out.data as one last challenge.           */
/* The host then reads one line: after SUCCESS it must be empty (else the exchange fails), after FAIL anything
 * counts as a failed login; only then comes the reply. Mechanisms never code this dance themselves.            */
#define PRV_OUT_SELF_ASSERTED 0x0002u      /* identity = out.authcid, proven by the mechanism itself            */
                                           /* (GSSAPI...); host demands PRV_M_SELF_ASSERTS + operator's consent */
typedef struct prv_out {
  uint32_t   size;
  prv_action action;                       /* host presets FAIL with PRV_FAIL_INTERNAL                          */
  uint8_t   *buf;                          /* host scratch, wiped afterwards                                    */
  uint32_t   cap, used;                    /* cap >= max_output + PRV_DIAG_MAX; used: 0 at first, <= cap        */
  uint32_t   arg;                          /* prv_fail / prv_keykind / prv_cbtype                               */
  uint32_t   flags;                        /* PRV_OUT_* bits                                                    */
  prv_slice  authcid, authzid, data, data2;
  prv_slice  diag;                         /* UTF-8 reason for the audit log; never shown to the client. No     */
                                           /* secrets here                                                      */
  uint32_t   handle;
  uint32_t   reserved;                     /* 0                                                                 */
} prv_out;

/* ------------------------------------------------------------------ mechanism descriptor */
#define PRV_M_CLIENT_FIRST  0x00000001u    /* accepts an initial response                                       */
#define PRV_M_SERVER_FIRST  0x00000002u    /* an initial response is an error (501 5.7.0), by the host          */
#define PRV_M_PLAINTEXT     0x00000004u    /* a password or bearer token crosses the wire                       */
#define PRV_M_NEEDS_TLS     0x00000008u
#define PRV_M_NEEDS_CERT    0x00000010u
#define PRV_M_CHANNEL_BIND  0x00000020u    /* a -PLUS mechanism: needs cb_types != 0                            */
#define PRV_M_MUTUAL        0x00000040u
#define PRV_M_ANONYMOUS     0x00000080u    /* SUCCESS with handle 0: no identity, where the operator grants that. */
                                           /* The client's message is its trace text, for the log               */
#define PRV_M_OBSOLETE      0x00000100u    /* never advertised unless named in the configuration                */
#define PRV_M_ALLOW_NUL     0x00000200u    /* without it the host rejects messages that contain NUL             */
#define PRV_M_ENTROPY       0x00000400u
#define PRV_M_POD_STATE     0x00000800u    /* state has no pointers and no destructor: host may snapshot,       */
                                           /* move or hand it to another process                                */
#define PRV_M_SELF_ASSERTS  0x00001000u
#define PRV_M_OFFLOAD_ALL   0x00002000u    /* every step runs on the worker pool                                */
#define PRV_M_ONE_ROUNDTRIP 0x00004000u    /* may be pipelined (RFC 4954 section 4)                             */
#define PRV_M_UTF8          0x00008000u    /* host rejects messages that are not UTF-8                          */
#define PRV_M_MAY_OFFLOAD   0x00010000u    /* some steps answer PRV_ACT_OFFLOAD                                 */

/* Configuration: canonical JSON, and the same flattened ("a.b.0" -> text) so that C needs no JSON parser.      */
enum { PRV_KV_TEXT = 1, PRV_KV_NUMBER = 2, PRV_KV_BOOL = 3 /* "true" or "false" */, PRV_KV_NULL = 4 };
typedef struct prv_kv { prv_bytes key, value; uint32_t type; uint32_t reserved; } prv_kv;
typedef struct prv_config {
  uint32_t size, kv_count, kv_stride;      /* use PRV_KV_AT: a later host may know longer entries               */
  uint32_t reserved;                       /* 0                                                                 */
  prv_bytes json;
  const prv_kv *kv;
} prv_config;
#define PRV_KV_AT(config, i) \
  ((const prv_kv *)(const void *)((const uint8_t *)(const void *)(config)->kv + (size_t)(config)->kv_stride * (i)))

typedef struct prv_mech {
  uint32_t  size, flags;
  uint64_t  needs;                         /* PRV_NEED bits; host refuses to enable it if unmet                 */
  const char *name;                        /* [A-Z0-9_-]{1,20}                                                  */
  const char *plus_of;                     /* "SCRAM-SHA-256" for "SCRAM-SHA-256-PLUS", else NULL               */
  const char *config_schema;               /* JSON Schema or NULL                                               */
  uint32_t  strength;                      /* advertising order, 0..100                                         */
  uint32_t  state_size, state_align;       /* host places it; zeroed before START                               */
  uint32_t  max_message, max_output, max_steps;
  /* Once per listener and reload, before any exchange. 0 and *conf, or another value and a message in err.     */
  /* NULL: the mechanism has no settings, conf is NULL.                                                         */
  int32_t (*configure)(void *plugin, const prv_config *config, void **conf, char *err, size_t errcap);
  void    (*release)(void *plugin, void *conf);          /* after the last exchange with it; NULL: nothing to do */
  void    (*step)(const void *conf, void *state, const prv_in *in, prv_out *out);
  /* After the last step, and only when there was one. NULL if and only if there is nothing to do. With         */
  /* PRV_M_POD_STATE it must be NULL.                                                                           */
  void    (*drop_state)(const void *conf, void *state);
} prv_mech;

/* ------------------------------------------------------------------ credential back end (may block) */
typedef struct prv_request {               /* an effect, resolved; all bytes host-owned                         */
  uint32_t size; prv_action effect; uint32_t arg, conn_flags;
  uint64_t deadline_ms;                    /* unix time                                                         */
  uint64_t session_id;
  prv_bytes authcid, authzid, data, data2;
  prv_bytes service;                       /* BACKEND_CALL: whom the mechanism asked for                        */
  prv_bytes mechanism, listener, sni;
  prv_bytes client_ip;                     /* as in prv_in                                                      */
  uint32_t tls_version, reserved;
} prv_request;
typedef struct prv_reply {
  uint32_t size; prv_status status;
  uint32_t found;                          /* 0: no such user or no such key: the host builds the decoy         */
  uint32_t iterations;
  uint8_t *buf; uint32_t cap, used;
  prv_slice identity, data, salt, stored_key, server_key, diag;   /* region PRV_R_OUT                           */
} prv_reply;
#define PRV_B_BLOCKING 0x0001u             /* called on the worker pool, at most max_parallel at a time         */
typedef struct prv_backend {
  uint32_t size, flags; uint64_t provides;
  const char *name, *config_schema;
  uint32_t max_parallel, reserved;
  int32_t (*configure)(void *plugin, const prv_config *config, void **conf, char *err, size_t errcap);
  void    (*release)(void *plugin, void *conf);
  void    (*handle)(void *conf, const prv_request *rq, prv_reply *rp);
} prv_backend;

/* ------------------------------------------------------------------ handshake */
enum { PRV_LOG_ERROR = 1, PRV_LOG_WARNING = 2, PRV_LOG_INFO = 3, PRV_LOG_DEBUG = 4 };
typedef struct prv_host {                  /* valid until quiesce() has returned                                */
  uint32_t size; uint16_t abi_major, abi_minor;
  uint64_t effects;                        /* effects this host can perform at all                              */
  const char *version;
  void *ctx;
  void (*log)(void *ctx, int32_t level, const char *msg, size_t len);  /* at entry, configure, release, quiesce */
} prv_host;

typedef struct prv_plugin {                /* static: the host never copies nor frees it                        */
  uint64_t magic;
  uint32_t size; uint16_t abi_major, abi_minor;
  const char *id, *version, *build;        /* id: [a-z0-9_]{1,32}; build: e.g. "gcc 12", "rust panic=unwind"    */
  void *plugin;                            /* passed back to configure(), release() and quiesce()               */
  uint32_t mech_count, mech_stride;        /* stride, not sizeof: both sides may know different sizes           */
  const prv_mech *mechs;
  uint32_t backend_count, backend_stride;
  const prv_backend *backends;
  void (*quiesce)(void *plugin);           /* last call ever: free, join; the library stays mapped. Or NULL     */
} prv_plugin;

#if defined(__GNUC__)
#define PRV_EXPORT __attribute__((visibility("default")))
#else
#define PRV_EXPORT
#endif

/* The library exports exactly one symbol, this function. NULL with a message in err: not today.
 * err and errcap, here and in configure(): room for a message with a NUL at its end, one line, UTF-8.           */
typedef const prv_plugin *(*prv_entry_fn)(const prv_host *host, char *err, size_t errcap);
PRV_EXPORT const prv_plugin *portreeve_plugin_v1(const prv_host *host, char *err, size_t errcap);

/* ------------------------------------------------------------------ the note: what can be known without running it
 * An ELF note (section .note.portreeve, owner "Portreeve", type 1) holds one JSON object, UTF-8, at most 16384
 * octets, with NULs after it ignored. The host reads it before it loads the library and refuses a library whose
 * descriptor says otherwise. Write PRV_NOTE("...") once, at file scope, with these keys; others are ignored:
 *   "abi"         string   "1.0": major.minor that the library was built against                    (required)
 *   "id"          string   as in prv_plugin                                                         (required)
 *   "version"     string   as in prv_plugin                                                         (required)
 *   "panic"       string   what a fault of the language's own does: "unwind" (caught before it      (required)
 *                          leaves the library), "abort" (ends the process; refused for inline use),
 *                          "none" (the language has none, e.g. C)
 *   "mechanisms"  object   name -> array of the effects it needs, without PRV_ACT_:                 (required)
 *                          {"PLAIN":["VERIFY_PASSWORD"]}
 *   "backends"    array    names                                                                    (optional)
 *   "self_asserts" array   names of the mechanisms with PRV_M_SELF_ASSERTS                          (optional)
 *   "offloads"    array    names of those with PRV_M_OFFLOAD_ALL or PRV_M_MAY_OFFLOAD               (optional)
 *                          Both tell the operator before the library runs; a lie is refused.
 *   "build"       string   as in prv_plugin                                                         (optional) */
#define PRV_NOTE_OWNER "Portreeve"
#define PRV_NOTE_TYPE  1u
#define PRV_NOTE_MAX   16384u
#if defined(__GNUC__)
#define PRV_NOTE(json)                                                                                           \
  static const struct { uint32_t namesz, descsz, type; char name[12]; char desc[(sizeof(json) + 3u) / 4u * 4u]; } \
  prv_note_ __attribute__((used, aligned(4), section(".note.portreeve"))) =                                      \
    { sizeof(PRV_NOTE_OWNER), sizeof(json), PRV_NOTE_TYPE, PRV_NOTE_OWNER, json }
#endif

/* ------------------------------------------------------------------ helpers (header-only) */
static inline prv_slice prv_slice_at(prv_region region, size_t off, size_t len) {
  prv_slice s;
  s.region = len ? region : (prv_region)PRV_R_NONE;
  s.off = len ? (uint32_t)off : 0;
  s.len = (uint32_t)len;
  return s;
}
/* Names n octets of the client's message that begin at p. */
static inline prv_slice prv_ref_msg(const prv_in *in, const uint8_t *p, size_t n) {
  return prv_slice_at(PRV_R_MSG, n ? (size_t)(p - in->msg.ptr) : 0, n);
}
/* Appends to the scratch; -1 when there is no room. */
static inline int prv_put(prv_out *o, const void *p, size_t n) {
  if (o->used > o->cap || n > (size_t)(o->cap - o->used)) return -1;
  if (n) memcpy(o->buf + o->used, p, n);
  o->used += (uint32_t)n;
  return 0;
}
/* Sends what was put so far and waits for the client. */
static inline void prv_challenge(prv_out *o) {
  o->action = PRV_ACT_CHALLENGE;
  o->data = prv_slice_at(PRV_R_OUT, 0, o->used);
}
static inline void prv_fail_with(prv_out *o, prv_fail f) { o->action = PRV_ACT_FAIL; o->arg = f; }
/* Ends the exchange after EV_RESULT: success, or the failure class that belongs to the status. */
static inline void prv_finish(prv_out *o, const prv_result *r) {
  static const prv_fail class_of[] = { 0, PRV_FAIL_CREDENTIALS, PRV_FAIL_TEMPORARY, PRV_FAIL_TEMPORARY,
                                       PRV_FAIL_TRANSITION, PRV_FAIL_EXPIRED };
  if (r == NULL || r->status > PRV_EXPIRED) { prv_fail_with(o, PRV_FAIL_INTERNAL); return; }
  if (r->status != PRV_OK) { prv_fail_with(o, class_of[r->status]); return; }
  o->action = PRV_ACT_SUCCESS;
  o->handle = r->handle;
}
/* Compares in a time that depends on n only. */
static inline int prv_ct_eq(const void *a, const void *b, size_t n) {
  const volatile uint8_t *x = (const volatile uint8_t *)a, *y = (const volatile uint8_t *)b;
  uint8_t d = 0;
  while (n--) d |= (uint8_t)(*x++ ^ *y++);
  return d == 0;
}
#ifdef __cplusplus
}
#endif
#endif

//! The rules by their ids. An id is never reused; its sentence may become better.

use serde::{Deserialize, Serialize};

/// A rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Stable.
    pub id: &'static str,
    /// What must hold.
    pub what: &'static str,
    /// How to mend it.
    pub remedy: &'static str,
}

macro_rules! rules {
    ($($id:ident: $what:literal, $remedy:literal;)*) => {
        /// All rules, in the order of a report.
        pub const RULES: &[Rule] = &[$(Rule { id: stringify!($id), what: $what, remedy: $remedy }),*];
    };
}

rules! {
    A1: "the file is a shared library that exports portreeve_plugin_v1",
        "build it with -shared -fPIC (cdylib in Rust), export portreeve_plugin_v1 with PRV_EXPORT or portreeve_plugin!, and link all that it needs";
    A2: "the descriptor has the magic and the ABI version of this host",
        "set .magic = PRV_MAGIC, .abi_major = PRV_ABI_MAJOR and .abi_minor = PRV_ABI_MINOR, and return the descriptor when host->abi_major is yours";
    A3: "sizes and strides are those of the header that it was built with",
        "set .size = sizeof(the struct) in every struct and .mech_stride = sizeof(prv_mech)";
    A4: "names are in their form",
        "a mechanism name is 1 to 20 of A-Z, 0-9, - and _ (RFC 4422 section 3.1), a library id 1 to 32 of a-z, 0-9 and _; each once";
    A5: "limits are within the ABI's, and the mechanism keeps them",
        "state_size <= 4032, state_align a power of two <= 64, max_message and max_output <= 65536, max_steps 1 to 32; then end every exchange within max_steps";
    A6: "flags and needs agree with each other and with what the mechanism does",
        "declare each effect that you ask for in .needs, and only flags that do not contradict each other";
    A7: "the note tells the truth, and no fault ends the process",
        "write PRV_NOTE (or portreeve_plugin!) with the same id, version, mechanisms and needs as the descriptor; build Rust with panic = \"unwind\"; answer PRV_FAIL_INTERNAL instead of abort() or assert()";
    M1: "the same events give the same answers",
        "keep everything that an exchange remembers in its state: no static variable, no clock, no random source, no uninitialised memory, no errno";
    M2: "only memory that the host gave is touched, and answers stay inside of it",
        "compare every length before you read or write; the message is read-only and has no NUL at its end; used <= cap, a challenge is at most max_output long, a slice lies inside of its region";
    M3: "a step does not allocate",
        "put what must outlast a step into the state (state_size) and what goes out into out->buf; in Rust, avoid Vec, String, Box and format! in step; a mechanism that must own memory says so with drop_state";
    M4: "drop_state frees what the exchange took, once, wherever the exchange ended",
        "free in drop_state whatever the state holds, and set the pointer to NULL after each free";
    M5: "a step makes no system call and starts no thread",
        "ask the host by an effect instead: VERIFY_PASSWORD, FETCH_KEY, BACKEND_CALL and so on; time and entropy come with the event; say what you have to say in out->diag";
    M6: "exchanges may run at once and interleaved",
        "no static or shared buffer: conf is read-only in step, everything else belongs into the exchange's state";
    M7: "99 of 100 steps take at most 50 microseconds",
        "let the host do expensive work (it hashes passwords in VERIFY_PASSWORD), or declare PRV_M_MAY_OFFLOAD and answer PRV_ACT_OFFLOAD; no loop may depend on what the client says without a bound";
    P1: "no initial response, and an empty one, are different things",
        "look at PRV_C_HAS_IR (Event::Start { initial }): without it answer PRV_ACT_CHALLENGE (an empty one when the client speaks first); with it take in->msg even when it is empty";
    P2: "each outcome of an effect leads to the failure class that belongs to it",
        "end with prv_finish(out, in->result) or outcome.proof()?: a back end that is down is TEMPORARY and never CREDENTIALS";
    P3: "SUCCESS only by an effect that proved the identity",
        "answer PRV_ACT_SUCCESS only after PRV_EV_RESULT with PRV_OK, with out->handle = in->result->handle, and after FETCH_KEY only when the client's proof was compared with the key";
    P4: "whatever the client sends is answered: MALFORMED or CREDENTIALS, never INTERNAL, never a panic",
        "check lengths and grammar first, and answer PRV_FAIL_MALFORMED (Bad::MALFORMED) for what does not fit; INTERNAL is for what cannot be";
    P5: "one flipped bit in the client's proof means no success",
        "compare the whole proof (prv_ct_eq or subtle), and decode hexadecimal and base64 strictly";
    P6: "a made-up key for an unknown user is treated like a real one",
        "let nothing that is sent, and no order of steps, depend on the key's content; compare in constant time";
    P7: "published exchanges come out as published",
        "compare your messages with those of the vector, octet by octet";
    P8: "channel binding is neither ignored nor downgraded",
        "compare the client's binding with that of CHANNEL_BINDING; -PLUS refuses n and y, the other one refuses p=, and y when PRV_C_CB_SIBLING is set (RFC 5802 section 6)";
    B1: "a back end's answers lie inside of its buffer, and have what belongs to them",
        "used <= cap; identity, data, salt, keys and diag are slices of PRV_R_OUT inside of used; a token or certificate that is right names an identity, a SCRAM key has salt, iterations and two keys as long as the hash";
    B2: "a name that nobody has is not found, whatever it looks like",
        "answer found = 0 for who is not there; compare names as octets with their length (no NUL ends them, they may be 65536 long and need not be UTF-8), and give them to a database as parameters, never as a part of a query";
    B3: "what a back end does not provide it refuses, each time",
        "answer PRV_UNSUPPORTED for every rq->effect that is not in .provides, and for kinds of keys that you do not know";
    B4: "as many calls at a time as max_parallel says give the same answers as one after the other",
        "no static or shared buffer: conf is shared by all threads that call handle, so lock what changes, or lower max_parallel";
    D1: "settings are described, and checked",
        "config_schema is a JSON Schema of type object whose examples configure() takes; configure() refuses a key that it does not know";
}

/// A rule by its id.
pub fn rule(id: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.id == id)
}

/// How a rule came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It does not.
    Fail,
    /// It does not concern this mechanism, or could not be tried.
    Skip,
}

/// One line of a report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// The rule.
    pub rule: String,
    /// Empty for rules about the whole library.
    pub mech: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was seen, or why it was skipped.
    pub text: String,
}

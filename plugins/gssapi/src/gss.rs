//! The foreign edge: the part of libgssapi_krb5 that an acceptor takes (RFC 2743 names, RFC 2744 forms), as safe
//! types that free what they own. All `unsafe` of this crate is here.

use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr;

#[repr(C)]
struct BufferDesc {
    length: usize,
    value: *mut c_void,
}

#[repr(C)]
struct OidDesc {
    length: u32,
    elements: *const c_void,
}

// SAFETY: constants below; nothing is ever written through them.
unsafe impl Sync for OidDesc {}

#[repr(C)]
struct OidSetDesc {
    count: usize,
    elements: *const OidDesc,
}

#[repr(C)]
struct KeyValue {
    key: *const c_char,
    value: *const c_char,
}

#[repr(C)]
struct KeyValueSet {
    count: u32,
    elements: *const KeyValue,
}

/// Names, credentials and contexts are pointers to what only the library knows.
type Handle = *mut c_void;

#[link(name = "gssapi_krb5")]
unsafe extern "C" {
    fn gss_import_name(minor: *mut u32, name: *const BufferDesc, kind: *const OidDesc, to: *mut Handle) -> u32;
    fn gss_release_name(minor: *mut u32, name: *mut Handle) -> u32;
    fn gss_display_name(minor: *mut u32, name: Handle, to: *mut BufferDesc, kind: *mut *const OidDesc) -> u32;
    fn gss_acquire_cred_from(
        minor: *mut u32,
        name: Handle,
        time: u32,
        mechanisms: *const OidSetDesc,
        usage: i32,
        store: *const KeyValueSet,
        to: *mut Handle,
        actual: *mut *mut c_void,
        time_left: *mut u32,
    ) -> u32;
    fn gss_release_cred(minor: *mut u32, credential: *mut Handle) -> u32;
    fn gss_accept_sec_context(
        minor: *mut u32,
        context: *mut Handle,
        credential: Handle,
        token: *const BufferDesc,
        bindings: *const c_void,
        source: *mut Handle,
        mechanism: *mut *const OidDesc,
        answer: *mut BufferDesc,
        flags: *mut u32,
        time_left: *mut u32,
        delegated: *mut Handle,
    ) -> u32;
    fn gss_inquire_context(
        minor: *mut u32,
        context: Handle,
        source: *mut Handle,
        target: *mut Handle,
        lifetime: *mut u32,
        mechanism: *mut *const OidDesc,
        flags: *mut u32,
        local: *mut i32,
        open: *mut i32,
    ) -> u32;
    fn gss_delete_sec_context(minor: *mut u32, context: *mut Handle, token: *mut BufferDesc) -> u32;
    fn gss_wrap(
        minor: *mut u32,
        context: Handle,
        sealed: i32,
        qop: u32,
        from: *const BufferDesc,
        is_sealed: *mut i32,
        to: *mut BufferDesc,
    ) -> u32;
    fn gss_unwrap(
        minor: *mut u32,
        context: Handle,
        from: *const BufferDesc,
        to: *mut BufferDesc,
        is_sealed: *mut i32,
        qop: *mut u32,
    ) -> u32;
    fn gss_release_buffer(minor: *mut u32, buffer: *mut BufferDesc) -> u32;
    fn gss_display_status(
        minor: *mut u32,
        status: u32,
        kind: i32,
        mechanism: *const OidDesc,
        more: *mut u32,
        to: *mut BufferDesc,
    ) -> u32;
}

/// `GSS_C_ACCEPT`.
const ACCEPT: i32 = 2;
/// `GSS_C_INDEFINITE`.
const INDEFINITE: u32 = u32::MAX;
/// `GSS_S_CONTINUE_NEEDED`.
const CONTINUE_NEEDED: u32 = 1;
/// Routine and calling errors; below are supplementary bits.
const ERRORS: u32 = 0xffff_0000;
/// `GSS_C_INTEG_FLAG`.
const INTEGRITY: u32 = 32;

/// 1.2.840.113554.1.2.2 (RFC 1964 §1).
const KRB5: &[u8] = b"\x2a\x86\x48\x86\xf7\x12\x01\x02\x02";
/// `GSS_KRB5_NT_PRINCIPAL_NAME`, 1.2.840.113554.1.2.2.1 (RFC 1964 §2.1.1).
const PRINCIPAL: &[u8] = b"\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x01";

static KRB5_OID: OidDesc = OidDesc { length: KRB5.len() as u32, elements: KRB5.as_ptr().cast() };
static PRINCIPAL_OID: OidDesc = OidDesc { length: PRINCIPAL.len() as u32, elements: PRINCIPAL.as_ptr().cast() };

/// Why a call failed, in the library's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Routine error in bits 16 to 23, supplementary bits below.
    pub major: u32,
    /// The mechanism's own number.
    pub minor: u32,
}

impl Trouble {
    fn of(major: u32, minor: u32) -> Result<u32, Trouble> {
        if major & ERRORS == 0 { Ok(major) } else { Err(Trouble { major, minor }) }
    }

    /// In the library's words.
    pub fn words(self) -> String {
        const MECHANISM: i32 = 2;
        const GENERAL: i32 = 1;
        let (status, kind) = if self.minor == 0 { (self.major, GENERAL) } else { (self.minor, MECHANISM) };
        let (mut minor, mut more, mut text) = (0, 0, Buffer::EMPTY);
        // SAFETY: numbers, a static OID, and places for the answer that outlive the call.
        let major = unsafe { gss_display_status(&mut minor, status, kind, &KRB5_OID, &mut more, &mut text.0) };
        match Trouble::of(major, minor) {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => format!("error {:#x}, {}", self.major, self.minor),
        }
    }
}

/// Octets that the library made.
pub struct Buffer(BufferDesc);

impl Buffer {
    const EMPTY: Buffer = Buffer(BufferDesc { length: 0, value: ptr::null_mut() });
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.0.value.is_null() || self.0.length == 0 {
            return &[];
        }
        // SAFETY: the library made `length` octets at `value`, and only our `drop` releases them.
        unsafe { std::slice::from_raw_parts(self.0.value.cast(), self.0.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut minor = 0;
        // SAFETY: empty, or made by the library and released once.
        unsafe { gss_release_buffer(&mut minor, &mut self.0) };
    }
}

/// What a call reads: it keeps no pointer to it.
struct Given<'a>(BufferDesc, PhantomData<&'a [u8]>);

impl<'a> Given<'a> {
    fn new(octets: &'a [u8]) -> Self {
        Self(BufferDesc { length: octets.len(), value: octets.as_ptr().cast_mut().cast() }, PhantomData)
    }
}

/// A name, released with this.
struct Name(Handle);

impl Name {
    const NONE: Name = Name(ptr::null_mut());

    fn principal(name: &str) -> Result<Name, Trouble> {
        let (mut minor, mut made, text) = (0, Name::NONE, Given::new(name.as_bytes()));
        // SAFETY: the text, the static OID and the place for the answer outlive the call.
        let major = unsafe { gss_import_name(&mut minor, &text.0, &PRINCIPAL_OID, &mut made.0) };
        Trouble::of(major, minor).map(|_| made)
    }

    fn text(&self) -> Result<String, Trouble> {
        let (mut minor, mut text) = (0, Buffer::EMPTY);
        // SAFETY: a name of the library's, and places for the answer that outlive the call.
        let major = unsafe { gss_display_name(&mut minor, self.0, &mut text.0, ptr::null_mut()) };
        Trouble::of(major, minor)?;
        // What is not UTF-8 gets a character that no user's name has.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let mut minor = 0;
        if !self.0.is_null() {
            // SAFETY: the library made it, and it is released once.
            unsafe { gss_release_name(&mut minor, &mut self.0) };
        }
    }
}

/// Keys of a service.
pub struct Credential(Handle);

// SAFETY: GSSAPI handles may be used by any thread, one at a time per handle (MIT krb5, "thread safety"), and `&mut`
// or ownership makes sure of that here.
unsafe impl Send for Credential {}

impl Credential {
    /// Keys of a principal, or any that the keytab has. `store` says where, as `keytab` and `rcache`.
    pub fn acquire(principal: Option<&str>, store: &[(&CStr, &CString)]) -> Result<Credential, Trouble> {
        let name = principal.map_or(Ok(Name::NONE), Name::principal)?;
        let elements: Vec<KeyValue> =
            store.iter().map(|(key, value)| KeyValue { key: key.as_ptr(), value: value.as_ptr() }).collect();
        let set = KeyValueSet { count: elements.len() as u32, elements: elements.as_ptr() };
        let from = if elements.is_empty() { ptr::null() } else { &raw const set };
        let mechanisms = OidSetDesc { count: 1, elements: &raw const KRB5_OID };
        let (mut minor, mut made) = (0, Credential(ptr::null_mut()));
        // SAFETY:
        // - name, set, its strings (ended with NUL) and the OIDs outlive the call, which keeps none of them;
        // - the last two answers are not asked for.
        let major = unsafe {
            gss_acquire_cred_from(
                &mut minor,
                name.0,
                INDEFINITE,
                &mechanisms,
                ACCEPT,
                from,
                &mut made.0,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        Trouble::of(major, minor).map(|_| made)
    }
}

impl Drop for Credential {
    fn drop(&mut self) {
        let mut minor = 0;
        if !self.0.is_null() {
            // SAFETY: the library made it, and it is released once.
            unsafe { gss_release_cred(&mut minor, &mut self.0) };
        }
    }
}

/// One dialogue with a client.
pub struct Context {
    handle: Handle,
    credential: Credential,
}

// SAFETY: as for `Credential`.
unsafe impl Send for Context {}

/// A token was good.
pub struct Accepted {
    /// For the client; may be empty.
    pub token: Buffer,
    /// Who the client is, and as whom we were addressed; `None`: it has more to say.
    pub peers: Option<(String, String)>,
}

impl Context {
    /// Before the client's first token.
    pub fn new(credential: Credential) -> Self {
        Self { handle: ptr::null_mut(), credential }
    }

    /// Takes a token of the client.
    pub fn accept(&mut self, token: &[u8]) -> Result<Accepted, Trouble> {
        let (mut minor, mut flags, mut answer, mut source) = (0, 0, Buffer::EMPTY, Name::NONE);
        let given = Given::new(token);
        // SAFETY:
        // - the handle is null or this dialogue's, `&mut self` makes this the only call on it;
        // - the token lives during the call; the places for answers outlive it;
        // - no channel bindings; delegated credentials are not asked for, so none is given to us.
        let major = unsafe {
            gss_accept_sec_context(
                &mut minor,
                &mut self.handle,
                self.credential.0,
                &given.0,
                ptr::null(),
                &mut source.0,
                ptr::null_mut(),
                &mut answer.0,
                &mut flags,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        // A replayed token is told by a supplementary bit.
        if major & !CONTINUE_NEEDED != 0 {
            return Err(Trouble { major, minor });
        }
        if major & CONTINUE_NEEDED != 0 {
            return Ok(Accepted { token: answer, peers: None });
        }
        // Without integrity the last message could be anybody's.
        if flags & INTEGRITY == 0 {
            return Err(Trouble { major: UNAVAILABLE, minor: 0 });
        }
        Ok(Accepted { token: answer, peers: Some((source.text()?, self.target()?)) })
    }

    /// The principal that the client's ticket is for.
    fn target(&self) -> Result<String, Trouble> {
        let (mut minor, mut target, mut open) = (0, Name::NONE, 0);
        // SAFETY: an established context of ours; what is not asked for is null.
        let major = unsafe {
            gss_inquire_context(
                &mut minor,
                self.handle,
                ptr::null_mut(),
                &mut target.0,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
                &mut open,
            )
        };
        Trouble::of(major, minor)?;
        target.text()
    }

    /// A message to the client, protected against changes.
    pub fn wrap(&mut self, message: &[u8]) -> Result<Buffer, Trouble> {
        let (mut minor, mut wrapped, given) = (0, Buffer::EMPTY, Given::new(message));
        // SAFETY: an established context of ours, used by this call alone; all else outlives the call.
        let major = unsafe { gss_wrap(&mut minor, self.handle, 0, 0, &given.0, ptr::null_mut(), &mut wrapped.0) };
        Trouble::of(major, minor).map(|_| wrapped)
    }

    /// A message of the client, found unchanged and not seen before.
    pub fn unwrap(&mut self, message: &[u8]) -> Result<Buffer, Trouble> {
        let (mut minor, mut plain, given) = (0, Buffer::EMPTY, Given::new(message));
        // SAFETY: as for `wrap`.
        let major =
            unsafe { gss_unwrap(&mut minor, self.handle, &given.0, &mut plain.0, ptr::null_mut(), ptr::null_mut()) };
        // Any supplementary bit (seen before, out of order, too old) is as bad as an error.
        if major == 0 { Ok(plain) } else { Err(Trouble { major, minor }) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let mut minor = 0;
        if !self.handle.is_null() {
            // SAFETY: ours, deleted once; no token for the peer is wanted.
            unsafe { gss_delete_sec_context(&mut minor, &mut self.handle, ptr::null_mut()) };
        }
    }
}

/// Tells the library where its configuration is, for the whole process.
pub fn use_configuration(path: &str) {
    // SAFETY: called while the mechanism is configured, before any exchange: in the process of this library nobody
    // else reads the environment then. Its host starts no thread that does.
    unsafe { std::env::set_var("KRB5_CONFIG", path) };
}

/// Routine errors that are told apart, in place.
pub const BAD_MECH: u32 = 1 << 16;
pub const NO_CRED: u32 = 7 << 16;
pub const DEFECTIVE_TOKEN: u32 = 9 << 16;
pub const CREDENTIALS_EXPIRED: u32 = 11 << 16;
pub const CONTEXT_EXPIRED: u32 = 12 << 16;
pub const FAILURE: u32 = 13 << 16;
pub const UNAVAILABLE: u32 = 16 << 16;
/// `GSS_S_DUPLICATE_TOKEN`.
pub const DUPLICATE_TOKEN: u32 = 1 << 1;

//! A Kerberos realm for one test: a real KDC on a port that the system picks, with a database, a keytab and
//! configurations in a folder of its own, stopped by its handle.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::bare::HOSTNAME;
use crate::clients::{command_exists, present};
use crate::server::{PATIENCE, build, free_address, output, program, root};

pub const REALM: &str = "DEMO.TEST";

/// What all of it takes: Debian's krb5-kdc, krb5-admin-server, krb5-user, libkrb5-dev, python3-gssapi.
pub fn is_here() -> bool {
    let kdc = ["/usr/sbin/krb5kdc", "/usr/sbin/kdb5_util", "/usr/sbin/kadmin.local"];
    present("the KDC of MIT Kerberos", kdc.iter().all(|file| fs::exists(file).unwrap_or_default()))
        && present("kinit", command_exists("kinit"))
        && present("libkrb5-dev", fs::exists("/usr/include/gssapi/gssapi_krb5.h").unwrap_or_default())
        && present("python3-gssapi", python().is_some())
        && built()
}

/// The Python that has the bindings: Debian's, where another one stands before it.
fn python() -> Option<&'static str> {
    let has = |python: &&str| {
        let tried = Command::new(python).args(["-c", "import gssapi"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(has)
}

/// The library, beside the program where a server looks for it.
fn built() -> bool {
    static BUILT: OnceLock<bool> = OnceLock::new();
    *BUILT.get_or_init(|| {
        if std::env::var_os("PORTREEVE_PROGRAM").is_none() {
            build(&["portreeve-gssapi"]);
        }
        let library = program().with_file_name("libportreeve_gssapi.so");
        assert!(library.exists(), "{} is missing; `cargo build -p portreeve-gssapi` makes it", library.display());
        true
    })
}

/// A realm with `alice`, `bob` and `carol`, whose password is their name, and a keytab with `smtp` and `host` keys.
pub struct Realm {
    pub dir: TempDir,
    kdc: Option<Child>,
}

impl Realm {
    pub fn start() -> Self {
        let dir = TempDir::with_prefix("portreeve-it-krb5-").expect("a folder");
        let at = free_address();
        let mut realm = Self { dir, kdc: None };
        let kdc_log = realm.path("kdc.log");
        let common = format!(
            "[libdefaults]\n default_realm = {REALM}\n dns_lookup_kdc = false\n dns_lookup_realm = false\n \
             dns_canonicalize_hostname = false\n rdns = false\n udp_preference_limit = 1\n\
             [realms]\n {REALM} = {{\n  kdc = {at}\n }}\n\
             [domain_realm]\n {HOSTNAME} = {REALM}\n\
             [logging]\n kdc = FILE:{}\n",
            kdc_log.display()
        );
        fs::write(realm.path("krb5.conf"), &common).expect("written");
        // The server's own: clocks must agree to a second where a test says so.
        fs::write(realm.path("strict.conf"), common.replace("rdns = false", "rdns = false\n clockskew = 1"))
            .expect("written");
        let kdc = format!(
            "[kdcdefaults]\n kdc_listen = {at}\n kdc_tcp_listen = {at}\n\
             [realms]\n {REALM} = {{\n  database_name = {0}/principal\n  key_stash_file = {0}/stash\n  \
             acl_file = {0}/acl\n  max_life = 1h\n }}\n",
            realm.dir.path().display()
        );
        fs::write(realm.path("kdc.conf"), kdc).expect("written");
        fs::create_dir(realm.path("rcache")).expect("made");
        let (made, told) =
            output(realm.command("/usr/sbin/kdb5_util").args(["create", "-s", "-r", REALM, "-P", "master"]));
        assert!(made.success(), "{told}");
        for who in ["alice", "bob", "carol"] {
            realm.kadmin(&format!("addprinc -pw {who} {who}@{REALM}"));
        }
        for service in ["smtp", "host"] {
            realm.kadmin(&format!("addprinc -randkey {service}/{HOSTNAME}@{REALM}"));
            realm.kadmin(&format!("ktadd -k {} {service}/{HOSTNAME}@{REALM}", realm.path("keytab").display()));
        }
        let mut kdc = realm.command("/usr/sbin/krb5kdc");
        kdc.args(["-n", "-r", REALM]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        realm.kdc = Some(kdc.spawn().expect("a KDC"));
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(at).is_err() {
            assert!(Instant::now() < until, "no KDC: {}", fs::read_to_string(&kdc_log).unwrap_or_default());
            std::thread::sleep(std::time::Duration::from_millis(5)); // between two looks, not instead of one
        }
        realm
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program that finds this realm and no other.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("KRB5_CONFIG", self.path("krb5.conf")).env("KRB5_KDC_PROFILE", self.path("kdc.conf"));
        command.env("KRB5RCACHEDIR", self.path("rcache"));
        command
    }

    pub fn kadmin(&self, query: &str) {
        let (done, told) = output(self.command("/usr/sbin/kadmin.local").args(["-r", REALM, "-q", query]));
        assert!(done.success() && !told.contains("while"), "{query}: {told}");
    }

    /// The credential cache of somebody.
    pub fn cache(&self, who: &str) -> String {
        format!("FILE:{}", self.path(&format!("cache-{who}")).display())
    }

    /// Gets a ticket for somebody, with more words for kinit.
    pub fn ticket(&self, who: &str, words: &[&str]) {
        let mut kinit = self.command("kinit");
        kinit.args(words).args(["-c", &self.cache(who), who]);
        let (done, told) = crate::server::feed(&mut kinit, format!("{who}\n").as_bytes());
        assert!(done.success(), "kinit {who}: {told}");
    }

    /// The KDC is gone.
    pub fn stop(&mut self) {
        if let Some(mut kdc) = self.kdc.take() {
            let _ = kdc.kill();
            let _ = kdc.wait();
        }
    }

    /// What the server's configuration needs: plug-in, grants, settings.
    pub fn tables(&self, settings: &str) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        format!(
            "\n[[plugins.library]]\nid = \"gssapi\"\nself_asserts = true\n\
             grant = [\"read:{0}\", \"read:{1}\", \"write:{2}\"]\n\
             [mechanism.GSSAPI]\nconfig = \"{0}\"\nkeytab = \"{1}\"\nreplay_cache = \"{2}/replay\"\n{settings}\n",
            path("krb5.conf"),
            path("keytab"),
            path("rcache"),
        )
    }
}

impl Drop for Realm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Somebody's side of a context, in Python.
pub struct Party {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
}

impl Party {
    pub fn new(realm: &Realm, who: &str) -> Self {
        let mut python = realm.command(python().expect("looked for before"));
        python.arg(root().join("tests/clients/kerberos.py")).env("KRB5CCNAME", realm.cache(who));
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        let ask = child.stdin.take().expect("piped");
        let answer = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, ask, answer }
    }

    /// The answer, or why there is none.
    pub fn try_ask(&mut self, word: &str, argument: &str) -> Result<Vec<u8>, String> {
        writeln!(self.ask, "{word} {argument}").expect("asked");
        let mut line = String::new();
        self.answer.read_line(&mut line).expect("an answer");
        match line.strip_prefix('!') {
            Some(why) => Err(why.trim().to_owned()),
            None => Ok(STANDARD.decode(line.trim()).expect("base64")),
        }
    }

    pub fn ask(&mut self, word: &str, argument: &str) -> Vec<u8> {
        self.try_ask(word, argument).unwrap_or_else(|why| panic!("{word}: {why}"))
    }

    pub fn give(&mut self, word: &str, octets: &[u8]) -> Vec<u8> {
        self.ask(word, &STANDARD.encode(octets))
    }

    /// The first token for a service of our host.
    pub fn init(&mut self, service: &str) -> Vec<u8> {
        self.ask("init", &format!("{service}@{HOSTNAME}"))
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! `[[tls.certificate]]`: what listeners show to clients.

use std::path::PathBuf;

use super::Config;
use super::reader::{About, Reader, called_twice};
use crate::report::Report;
use crate::values::Table;

/// `[[tls.certificate]]`.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Its table as written.
    pub written: Table,
    /// Unique.
    pub name: String,
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

pub(super) fn read(read: &Reader<'_>, report: &mut Report) -> Option<Certificate> {
    let cert = read.required("tls.certificate[].cert", report)?;
    let key = read.required("tls.certificate[].key", report)?;
    let cert = read.base.join(cert);
    let name = read.text("tls.certificate[].name").unwrap_or_else(|| {
        cert.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_else(|| "certificate".into())
    });
    Some(Certificate { written: read.table.clone(), name, cert, key: read.base.join(key) })
}

pub(super) fn check(config: &Config, report: &mut Report) {
    for certificate in called_twice(&config.certificates, |certificate| &certificate.name) {
        let cause = format!("two certificates are called {:?}", certificate.name);
        let mut about = About::new(&certificate.written, report);
        about.error("tls.certificate[].name", cause, "give one of them another name");
    }
}

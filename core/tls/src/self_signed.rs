//! A certificate of our own making, for `demo` and for tests. Nobody trusts it without being told to.

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::error::CertificateError;

/// What [`self_signed`] made.
pub struct SelfSigned {
    /// One PEM section CERTIFICATE.
    pub certificate_pem: String,
    /// One PEM section PRIVATE KEY (PKCS#8).
    pub key_pem: Zeroizing<String>,
}

/// Makes a P-256 key and a certificate for `names` (DNS names, or IP addresses), valid from yesterday on
/// for `days` from now. The day before covers clients whose clock is behind.
pub fn self_signed(names: &[&str], days: u32) -> Result<SelfSigned, CertificateError> {
    let refused = |error: rcgen::Error| CertificateError::Generate { cause: error.to_string() };
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let Some(first) = names.first().cloned() else {
        return Err(CertificateError::Generate { cause: "no name given".into() });
    };
    let mut params = CertificateParams::new(names).map_err(refused)?;
    params.distinguished_name.push(DnType::CommonName, first);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(i64::from(days));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(refused)?;
    let certificate = params.self_signed(&key).map_err(refused)?;
    Ok(SelfSigned { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()) })
}

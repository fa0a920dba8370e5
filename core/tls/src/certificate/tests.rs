use crate::test_peer::Made;
use crate::*;

fn read(chain: &str, key: &str) -> Result<Certificate, CertificateError> {
    Certificate::from_pem(
        Pem { file: "chain.pem", octets: chain.as_bytes() },
        Pem { file: "key.pem", octets: key.as_bytes() },
    )
}

#[test]
fn names_and_dates() {
    let made = Made::self_signed(&["Mail.Example", "b.example", "192.0.2.1", "2001:db8::1"]);
    let certificate = made.certificate();
    assert_eq!(certificate.names(), ["mail.example", "b.example"]);
    assert_eq!(certificate.file(), "chain.pem");
    let span = certificate.not_after() - certificate.not_before();
    assert_eq!(span, 31 * 86_400, "a day before and 30 after now");
    let now = certificate.not_before() + 86_400;
    assert_eq!(certificate.check_dates(now), Ok(()));
    let expired = certificate.check_dates(certificate.not_after() + 1).unwrap_err();
    assert!(matches!(expired, CertificateError::Expired { .. }));
    assert!(expired.to_string().starts_with("chain.pem: the certificate expired at 20"), "{expired}");
    let early = certificate.check_dates(certificate.not_before() - 1).unwrap_err();
    assert!(early.to_string().contains("clock"), "{early}");
    let set = CertificateSet::new(vec![Made::rsa().certificate(), certificate]).unwrap();
    assert_eq!(set.check_dates(now), Ok(()));
    assert!(set.check_dates(now + 40 * 86_400).is_err());
}

#[test]
fn self_signed_has_ip_addresses() {
    let made = Made::self_signed(&["mail.example", "192.0.2.1", "::1"]);
    let der = made.der();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!(names, 3);
    assert!(matches!(self_signed(&[], 1), Err(CertificateError::Generate { .. })));
}

#[test]
fn each_mistake_has_its_message() {
    let (made, other, rsa) = (Made::self_signed(&["a.example"]), Made::self_signed(&["b.example"]), Made::rsa());
    let half = &made.chain[..made.chain.len() - 20];
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let old_style = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let not_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let both = format!("{}{}", other.chain, made.chain);
    let unrelated = format!("{}{}", made.chain, rsa.chain);
    for (chain, key, file, remedy) in [
        ("", made.key.as_str(), "chain.pem", "full chain"),
        (made.key.as_str(), made.key.as_str(), "chain.pem", "no certificate"),
        (made.chain.as_str(), "", "key.pem", "no private key"),
        (made.chain.as_str(), made.chain.as_str(), "key.pem", "no private key"),
        (made.chain.as_str(), encrypted, "key.pem", "openssl pkey"),
        (made.chain.as_str(), old_style, "key.pem", ""),
        (half, made.key.as_str(), "chain.pem", "still being written"),
        (made.chain.as_str(), not_key, "key.pem", "cannot be used"),
        (not_der, made.key.as_str(), "chain.pem", "certificate 1 cannot be read"),
        (made.chain.as_str(), other.key.as_str(), "chain.pem", "key.pem"),
        (made.chain.as_str(), rsa.key.as_str(), "chain.pem", "made together"),
        (both.as_str(), made.key.as_str(), "chain.pem", "put it first"),
        (unrelated.as_str(), made.key.as_str(), "chain.pem", "`CN=mail.example` follows"),
    ] {
        let error = read(chain, key).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{file}: ")) && error.contains(remedy), "{error}");
        assert!(!error.contains(&made.key[40..60]), "{error}");
    }
    assert_eq!(CertificateSet::new(vec![]).unwrap_err(), CertificateError::EmptySet);
}

#[test]
fn every_truncation_of_a_file_is_an_error() {
    let made = Made::self_signed(&["a.example"]);
    // The line break at the end may be missing, and the last dashes are not looked at by every reader.
    for length in 0..made.chain.trim_end().len() - 5 {
        assert!(read(&made.chain[..length], &made.key).is_err(), "chain cut at {length}");
    }
    for length in 0..made.key.trim_end().len() - 5 {
        assert!(read(&made.chain, &made.key[..length]).is_err(), "key cut at {length}");
    }
}

#[test]
fn a_chain_in_order_is_taken() {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let named = |name: &str, days| {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        params
    };
    let mut root = named("root", 1);
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate().unwrap();
    let root_certificate = root.self_signed(&root_key).unwrap();
    let root = Issuer::new(root, root_key);
    let mut middle = named("middle", 10);
    middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let middle_key = KeyPair::generate().unwrap();
    let middle_certificate = middle.signed_by(&middle_key, &root).unwrap();
    let middle = Issuer::new(middle, middle_key);
    let key = KeyPair::generate().unwrap();
    let leaf = named("mail.example", 20).signed_by(&key, &middle).unwrap();

    let chain = [leaf.pem(), middle_certificate.pem(), root_certificate.pem()];
    let key = key.serialize_pem();
    let certificate = read(&chain.concat(), &key).unwrap();
    assert_eq!(certificate.names(), ["mail.example"], "the common name, for want of others");
    let days = (certificate.not_after() - time::OffsetDateTime::now_utc().unix_timestamp()) as f64 / 86_400.0;
    assert!((9.9..10.1).contains(&days), "the issuer ends first; the root does not count: {days}");
    assert!(read(&chain[..2].concat(), &key).is_ok());
    let skipped = read(&[leaf.pem(), root_certificate.pem()].concat(), &key).unwrap_err();
    assert!(matches!(skipped, CertificateError::ChainOrder { position: 1, .. }), "{skipped}");
    let swapped = read(&[middle_certificate.pem(), leaf.pem()].concat(), &key).unwrap_err();
    assert!(matches!(swapped, CertificateError::LeafNotFirst { position: 2, .. }), "{swapped}");
}

#[test]
fn encoded_and_back() {
    let (ecdsa, rsa) = (Made::self_signed(&["a.example"]), Made::rsa());
    let set = CertificateSet::new(vec![ecdsa.certificate(), rsa.certificate()]).unwrap();
    let octets = set.encode();
    let again = CertificateSet::decode(&octets).unwrap();
    assert_eq!(*again.encode(), *octets);
    let names = |set: &CertificateSet| set.certificates().iter().flat_map(|c| c.names().to_vec()).collect::<Vec<_>>();
    assert_eq!(names(&again), names(&set));
    assert_eq!(again.certificates()[1].not_after(), set.certificates()[1].not_after());

    for length in 0..octets.len() {
        assert!(CertificateSet::decode(&octets[..length]).is_err(), "cut at {length}");
    }
    let mut longer = octets.to_vec();
    longer.push(0);
    assert!(CertificateSet::decode(&longer).is_err());
    // Lengths that promise more than there is must not be believed.
    let mut huge = octets.to_vec();
    huge[25..29].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(CertificateSet::decode(&huge).is_err());
    assert!(!format!("{set:?}").contains("PRIVATE"));
}

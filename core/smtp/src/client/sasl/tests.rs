use super::*;

fn exchange(mechanism: Mechanism, credentials: &Credentials) -> (Exchange, String) {
    let (mut exchange, mut out) = (Exchange::new(mechanism), Vec::new());
    exchange.begin(credentials, &[7; 24], Gs2::No, &mut out);
    (exchange, String::from_utf8(out).unwrap())
}

fn respond(exchange: &mut Exchange, credentials: &Credentials, challenge: &str) -> Result<String, &'static str> {
    let mut out = Vec::new();
    exchange.respond(&STANDARD.encode(challenge), credentials, &mut out)?;
    let out = String::from_utf8(out).unwrap();
    Ok(String::from_utf8(STANDARD.decode(out.strip_suffix("\r\n").unwrap()).unwrap()).unwrap())
}

#[test]
fn plain_and_login() {
    let credentials = Credentials::new("alice", "", "secret").unwrap();
    let (plain, said) = exchange(Mechanism::Plain, &credentials);
    assert_eq!(said, format!("AUTH PLAIN {}\r\n", STANDARD.encode("\0alice\0secret")));
    assert!(plain.is_proven());
    let (mut login, said) = exchange(Mechanism::Login, &credentials);
    assert_eq!(said, "AUTH LOGIN\r\n");
    assert_eq!(respond(&mut login, &credentials, "User Name").unwrap(), "alice");
    assert!(!login.is_proven());
    assert_eq!(respond(&mut login, &credentials, "").unwrap(), "secret");
    assert!(login.is_proven());
    assert!(respond(&mut login, &credentials, "more").is_err());
}

#[test]
fn a_long_initial_response_waits_for_its_go_ahead() {
    let credentials = Credentials::new(&"a".repeat(600), "", "secret").unwrap();
    let (mut plain, said) = exchange(Mechanism::Plain, &credentials);
    assert_eq!(said, "AUTH PLAIN\r\n");
    assert!(!plain.is_proven());
    assert_eq!(respond(&mut plain, &credentials, "").unwrap().len(), 600 + 8);
    assert!(plain.is_proven());
}

/// RFC 2195 §2.
#[test]
fn cram_md5_vector() {
    let credentials = Credentials::new("tim", "", "tanstaaftanstaaf").unwrap();
    let (mut cram, _) = exchange(Mechanism::CramMd5, &credentials);
    let response = respond(&mut cram, &credentials, "<1896.697170952@postoffice.reston.mci.net>").unwrap();
    assert_eq!(response, "tim b913a602c7eda7a495b4e6e7334d3890");
    assert!(cram.is_proven());
}

/// RFC 5802 §5, RFC 7677 §3, and others made by an independent program (tests/vectors). The nonces there are no base64
/// of ours.
#[test]
fn scram_vectors() {
    const EXPORTER: [u8; 32] = {
        let mut octets = [0; 32];
        let mut n = 0;
        while n < 32 {
            octets[n] = n as u8;
            n += 1;
        }
        octets
    };
    let end_point = STANDARD.decode("BimEMugGayniIjvMI6qVBLVq5Qj6vzQ1UIhpucMZDiI=").unwrap();
    let end_point = ChannelBindings { exporter: None, server_end_point: Some(end_point.into()) };
    // The exporter is preferred where there are both.
    let both = ChannelBindings { exporter: Some(EXPORTER), ..end_point.clone() };
    for (mechanism, gs2, authzid, client_first, server_first, client_final, server_final) in [
        (
            Mechanism::ScramSha1,
            Gs2::No,
            "",
            "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
            "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (
            Mechanism::ScramSha256,
            Gs2::No,
            "",
            "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
        (
            Mechanism::ScramSha512,
            Gs2::No,
            "",
            "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,s=AAECAwQFBgcICQoLDA0ODw==,i=4096",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,p=+9GAbrJ7wfqL9+dERVTYcSNEZTeaxNKx+CxGwTJAvRM4AQekNqwR50HIx91y\
             n8Vj55emMIIMCn79eQIdV/8DTw==",
            "v=RwA3j+mgpJ52iuq3j061q+9eaFXWIhFkZpMQ0qE6L8GVSLJskRG5F8LLC5bRYgvTZaB6RXG4mgYc1N/D83LLvg==",
        ),
        (
            Mechanism::ScramSha1Plus,
            Gs2::Bound(&both),
            "",
            "p=tls-exporter,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,s=AAECAwQFBgcICQoLDA0ODw==,i=4096",
            "c=cD10bHMtZXhwb3J0ZXIsLAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f,\
             r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,p=kfFHGekd1wzA1/mHKlJotfpmIIU=",
            "v=yIkL5kQhD0kS7zybkPlSjnDdwCA=",
        ),
        (
            Mechanism::ScramSha256Plus,
            Gs2::Bound(&end_point),
            "admin",
            "p=tls-server-end-point,a=admin,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,s=AAECAwQFBgcICQoLDA0ODw==,i=4096",
            "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCxhPWFkbWluLAYphDLoBmsp4iI7zCOqlQS1auUI+r80NVCIabnDGQ4i,\
             r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,p=7z2IGt8faR7vrvsbZWn7c1iKJKSJOAzQSm11vXd9pnM=",
            "v=TmG3oOJX4JoxTEReoBfYv43/NMDoa+n2OvWP45watpI=",
        ),
        (
            Mechanism::ScramSha512Plus,
            Gs2::Bound(&both),
            "",
            "p=tls-exporter,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,s=AAECAwQFBgcICQoLDA0ODw==,i=4096",
            "c=cD10bHMtZXhwb3J0ZXIsLAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f,\
             r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,p=/17t5vUjxcBMImYdGOL6a8N1UawdgEGHZoLKaA62BIPrhubq9sLO14dJcTVhIF6y\
             5t4d+bxYR5ZfGmXwJQ6Z9A==",
            "v=+7uLOJWT4M19cTyVsX7ybYilQOMQkbBMtVPbF1qYJ7C3SXkBt/Cg/kmMHFvnI9Kl0GZpX56NnVN2SoX2SPcJIA==",
        ),
    ] {
        let credentials = Credentials::new("user", authzid, "pencil").unwrap();
        for (server_final, proven) in [
            (server_final.to_owned(), Ok(true)),
            (server_final.replace("v=", "v=A"), Err(())),
            ("v=".to_owned(), Err(())),
            (String::new(), Err(())),
            ("e=invalid-proof".to_owned(), Ok(false)),
        ] {
            let (mut scram, mut out) = (Exchange::new(mechanism), Vec::new());
            scram.begin(&credentials, &[7; 24], gs2, &mut out);
            let said = String::from_utf8(out).unwrap();
            let said = STANDARD.decode(said.trim_end().rsplit(' ').next().unwrap()).unwrap();
            let (before, _) = client_first.split_once("r=").unwrap();
            assert!(said.starts_with(before.as_bytes()), "{mechanism:?}");
            let Awaited::ServerFirst { client_first_bare, nonce, .. } = &mut scram.awaited else { panic!() };
            *nonce = client_first.split_once("r=").unwrap().1.to_owned();
            *client_first_bare = client_first[client_first.find("n=user").unwrap()..].to_owned();
            assert_eq!(respond(&mut scram, &credentials, server_first).unwrap(), client_final, "{mechanism:?}");
            assert!(!scram.is_proven());
            let end = respond(&mut scram, &credentials, &server_final);
            assert_eq!(end.map(|_| scram.is_proven()).map_err(drop), proven, "{mechanism:?} {server_final}");
        }
    }
}

/// RFC 7628 §4.1 without host and port; and the form that mail providers document.
#[test]
fn tokens() {
    let credentials = Credentials::token("we,ird=user", "abc").unwrap();
    for (mechanism, first, to_failure) in [
        (Mechanism::OauthBearer, "n,a=we=2Cird=3Duser,\x01auth=Bearer abc\x01\x01", "\x01"),
        (Mechanism::Xoauth2, "user=we,ird=user\x01auth=Bearer abc\x01\x01", ""),
    ] {
        let (mut exchange, said) = exchange(mechanism, &credentials);
        assert_eq!(said, format!("AUTH {} {}\r\n", mechanism.name(), STANDARD.encode(first)));
        assert!(exchange.is_proven());
        assert_eq!(respond(&mut exchange, &credentials, "{\"status\":\"invalid_token\"}").unwrap(), to_failure);
        assert!(!exchange.is_proven(), "235 after a failure is a lie");
        assert!(respond(&mut exchange, &credentials, "more").is_err());
    }
    for (name, token) in [("", "abc"), ("a", ""), ("a\x01b", "abc"), ("a", "a b"), ("a", "a\x01b"), ("a", "ä")] {
        assert!(Credentials::token(name, token).is_err(), "{name:?} {token:?}");
    }
    // A token of the usual length does not fit the line of AUTH.
    let long = Credentials::token("a", &"t".repeat(1500)).unwrap();
    let (mut exchange, said) = self::exchange(Mechanism::OauthBearer, &long);
    assert_eq!(said, "AUTH OAUTHBEARER\r\n");
    assert!(!exchange.is_proven());
    assert!(respond(&mut exchange, &long, "").unwrap().ends_with("ttt\x01\x01") && exchange.is_proven());
}

/// RFC 4422 appendix A.
#[test]
fn external() {
    for (authzid, said) in
        [("", "AUTH EXTERNAL =\r\n"), ("fred@example.com", "AUTH EXTERNAL ZnJlZEBleGFtcGxlLmNvbQ==\r\n")]
    {
        let credentials = Credentials::external(authzid).unwrap();
        assert_eq!(exchange(Mechanism::External, &credentials).1, said);
    }
}

/// A password never goes where a token is expected, nor the other way round.
#[test]
fn secrets_keep_to_their_mechanisms() {
    let password = Credentials::new("a", "", "x").unwrap();
    let token = Credentials::token("a", "x").unwrap();
    let external = Credentials::external("").unwrap();
    for mechanism in Mechanism::ALL {
        let fits = [&password, &token, &external].map(|credentials| credentials.fit(mechanism));
        assert_eq!(fits.into_iter().filter(|fit| *fit).count(), 1, "{mechanism:?}");
        assert_eq!(fits[1], mechanism.takes_token());
        assert_eq!(Mechanism::named(&mechanism.name().to_lowercase()), Some(mechanism));
    }
}

#[test]
fn scram_refuses_what_a_hostile_server_says() {
    let credentials = Credentials::new("user", "", "pencil").unwrap();
    for (server_first, good) in [
        ("r=NONCEx,s=AAAA,i=4096", true),
        ("r=NONCEx,s=AAAA,i=4096,x=future", true),
        ("r=NONCE,s=AAAA,i=4096", false),
        ("r=other,s=AAAA,i=4096", false),
        ("r=NONCE x,s=AAAA,i=4096", false),
        ("r=NONCEx,s=,i=4096", false),
        ("r=NONCEx,s=A,i=4096", false),
        ("r=NONCEx,s=AAAA,i=4095", false),
        ("r=NONCEx,s=AAAA,i=4294967295", false),
        ("r=NONCEx,s=AAAA,i=-1", false),
        ("m=x,r=NONCEx,s=AAAA,i=4096", false),
        ("s=AAAA,r=NONCEx,i=4096", false),
        ("r=NONCEx,s=AAAA", false),
        ("", false),
    ] {
        let (mut scram, said) = exchange(Mechanism::ScramSha256, &credentials);
        let initial = STANDARD.decode(said.trim_end().rsplit(' ').next().unwrap()).unwrap();
        let initial = String::from_utf8(initial).unwrap();
        let nonce = initial.split("r=").nth(1).unwrap();
        let answer = respond(&mut scram, &credentials, &server_first.replace("NONCE", nonce));
        assert_eq!(answer.is_ok(), good, "{server_first}: {answer:?}");
        assert!(!scram.is_proven());
    }
}

#[test]
fn names_are_escaped_and_keys_are_kept() {
    let credentials = Credentials::new("a=b,c", "boss", "pencil").unwrap();
    let (_, said) = exchange(Mechanism::ScramSha256, &credentials);
    let initial = STANDARD.decode(said.trim_end().rsplit(' ').next().unwrap()).unwrap();
    assert!(initial.starts_with(b"n,a=boss,n=a=3Db=2Cc,r="));
    assert!(credentials.fit(Mechanism::Plain) && !credentials.fit(Mechanism::Login));
    let first = credentials.scram_keys(Hash::Sha256, b"salt", 4096);
    assert_eq!(credentials.scram_keys(Hash::Sha256, b"salt", 4096).client_key, first.client_key);
    assert_ne!(credentials.scram_keys(Hash::Sha256, b"tlas", 4096).client_key, first.client_key);
    assert_ne!(credentials.scram_keys(Hash::Sha1, b"salt", 4096).client_key, first.client_key);
    for (authcid, password) in [("", "x"), ("x", ""), ("a\0b", "x"), ("x", "a\0b")] {
        assert!(Credentials::new(authcid, "", password).is_err());
    }
}

//! Requests to issuers' servers: bounded in time and octets, never redirected, and not made at all for a while
//! when they fail again and again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use zeroize::Zeroizing;

use super::Issuer;
use crate::event::{Event, Report};

/// Longest answer that is read.
pub const MAX_OCTETS: u64 = 1 << 20;

/// After so many failures in a row a server is left alone,
const FAILURES_MAX: u32 = 5;
/// for so long; then one request tries again.
const REST: Duration = Duration::from_secs(5);

/// One server.
pub(super) struct Http {
    agent: ureq::Agent,
    url: String,
    issuer: String,
    breaker: Breaker,
    report: Report,
}

impl Http {
    pub(super) fn new(issuer: &Issuer, url: &str, report: &Report) -> Result<Self, String> {
        let mut tls = TlsConfig::builder();
        match &issuer.authorities {
            Some((file, pem)) => {
                let found: Vec<_> = parse_pem(pem)
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(certificate)) => Some(certificate),
                        _ => None,
                    })
                    .collect();
                if found.is_empty() {
                    return Err(format!("{file}: no certificate in it; name a PEM file with authorities"));
                }
                tls = tls.root_certs(RootCerts::new_with_certs(&found));
            }
            None if url.starts_with("https:") => {
                return Err("nobody vouches for its server; name a PEM file as ca".to_owned());
            }
            None => tls = tls.root_certs(RootCerts::new_with_certs(&[])),
        }
        let config = ureq::Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            // A secret is sent; whoever answers with another place is not the one that it is for.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // What the environment says about proxies is for somebody else.
            .proxy(None)
            // A connection that the other side has closed meanwhile would cost somebody a login.
            .max_idle_connections(0)
            .timeout_global(Some(issuer.timeout))
            .max_response_header_size(16 * 1024)
            .user_agent("portreeve")
            .build();
        Ok(Self {
            agent: config.new_agent(),
            url: url.to_owned(),
            issuer: issuer.name.clone(),
            breaker: Breaker::default(),
            report: report.clone(),
        })
    }

    /// What `read` makes of the body behind 200. `None` when there is none, or none of use; the report has been
    /// told why, once.
    pub(super) fn get<T>(&self, read: impl FnOnce(&[u8]) -> Result<T, String>) -> Option<T> {
        self.guarded(|| self.agent.get(&self.url).header("accept", "application/json").call(), read)
    }

    /// The same, for a form.
    pub(super) fn post<T>(
        &self,
        authorization: Option<&str>,
        form: &[u8],
        read: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Option<T> {
        let call = || {
            let mut request = self.agent.post(&self.url).header("accept", "application/json");
            request = request.header("content-type", "application/x-www-form-urlencoded");
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            request.send(form)
        };
        self.guarded(call, read)
    }

    fn guarded<T>(
        &self,
        call: impl FnOnce() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        read: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Option<T> {
        if !self.breaker.admits(Instant::now()) {
            return None;
        }
        let body = call().and_then(|mut response| match response.status().as_u16() {
            200 => response.body_mut().with_config().limit(MAX_OCTETS).read_to_vec(),
            status => Err(ureq::Error::StatusCode(status)),
        });
        match body.map(Zeroizing::new).map_err(|error| cause(&error)).and_then(|body| read(&body)) {
            Ok(answer) => {
                if self.breaker.succeeded() {
                    (self.report)(&Event::TokensBack { issuer: self.issuer.clone() });
                }
                Some(answer)
            }
            Err(why) => {
                self.failed(why);
                None
            }
        }
    }

    fn failed(&self, why: String) {
        if self.breaker.failed(Instant::now()) {
            (self.report)(&Event::TokenTrouble { issuer: self.issuer.clone(), why });
        }
    }
}

/// For the operator. None of these repeats what was sent.
fn cause(error: &ureq::Error) -> String {
    match error {
        ureq::Error::StatusCode(status @ 300..=399) => {
            format!("its server answers {status}: a redirection is not followed; name the place itself")
        }
        ureq::Error::StatusCode(status @ (401 | 403)) => {
            format!("its server answers {status}: it does not know us; check client_id and client_secret_file")
        }
        ureq::Error::StatusCode(status) => format!("its server answers {status}"),
        ureq::Error::Timeout(_) => "its server does not answer in time".into(),
        ureq::Error::BodyExceedsLimit(_) => "its server's answer is longer than 1 MiB".into(),
        ureq::Error::HostNotFound => "its server's name cannot be resolved".into(),
        other => other.to_string(),
    }
}

/// Lets nobody through while the other side is known to be down, except for one to try.
#[derive(Default)]
struct Breaker(Mutex<Trouble>);

#[derive(Default)]
struct Trouble {
    failures: u32,
    rests_until: Option<Instant>,
}

impl Breaker {
    fn admits(&self, now: Instant) -> bool {
        let mut trouble = self.0.lock();
        match trouble.rests_until {
            Some(until) if now < until => false,
            Some(_) => {
                // This one tries; the others wait for what becomes of it.
                trouble.rests_until = Some(now + REST);
                true
            }
            None => true,
        }
    }

    /// Whether that ends a trouble.
    fn succeeded(&self) -> bool {
        let trouble = std::mem::take(&mut *self.0.lock());
        trouble.failures > 0
    }

    /// Whether that begins one.
    fn failed(&self, now: Instant) -> bool {
        let mut trouble = self.0.lock();
        trouble.failures = trouble.failures.saturating_add(1);
        if trouble.failures >= FAILURES_MAX {
            trouble.rests_until = Some(now + REST);
        }
        trouble.failures == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breaker_opens_tries_and_closes() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for n in 0..FAILURES_MAX {
            assert!(breaker.admits(now));
            assert_eq!(breaker.failed(now), n == 0, "told once");
        }
        assert!(!breaker.admits(now) && !breaker.admits(now + REST / 2));
        assert!(breaker.admits(now + REST) && !breaker.admits(now + REST), "one tries");
        assert!(!breaker.failed(now + REST));
        assert!(breaker.admits(now + REST * 2));
        assert!(breaker.succeeded() && !breaker.succeeded());
        assert!(breaker.admits(now) && breaker.admits(now));
    }
}

//! Exchanges that were published or recorded, as `tests/vectors/sasl.json` has them.
//!
//! ```json
//! {"exchanges": [{"mech": "X-ACME-TOKEN", "source": "our specification",
//!   "exchange": [{"c": "dXNlcg=="}, {"s": "…"}, {"c": "…"}],
//!   "authcid": "user", "password": "pencil", "token": "…", "outcome": "success"}]}
//! ```
//!
//! `c` and `s` are base64. `outcome` is `success` or a failure class in lower case. `authcid`, `authzid`,
//! `password` and `token` are what the mechanism must find in the messages, and what the test's world knows.
//! Where the server's message holds its own nonce, it cannot be as published: then a client of ours must come to
//! the published messages from the published challenge, and the same client must get along with the mechanism.
//! With `entropy_b64`, the 64 octets of each event, all of it is compared octet by octet.

use std::path::Path;

use portreeve_plugin_abi::{action, out_flag};
use serde_json::Value;

use crate::client::{self, Client, DigestMd5, Kind, Person};
use crate::event::{Answer, Facts, Moment, Octets, class_name, shown, unbase64};
use crate::sandbox::Fault;
use crate::world::{End, Plan, Stepper, Story, Traits, World, in_words, run};

/// What ships with the program.
pub const PUBLISHED: &str = include_str!("../../../tests/vectors/sasl.json");

/// One exchange.
#[derive(Clone, Debug)]
pub struct Vector {
    /// The mechanism.
    pub mech: String,
    /// Where it is from.
    pub source: String,
    lines: Vec<(bool, Vec<u8>)>,
    fields: Value,
}

/// Reads a file of vectors.
pub fn read(path: &Path) -> Result<Vec<Vector>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text).map_err(|cause| format!("{}: {cause}", path.display()))
}

/// Vectors from JSON.
pub fn parse(json: &str) -> Result<Vec<Vector>, String> {
    let all: Value = serde_json::from_str(json).map_err(|error| format!("not JSON: {error}"))?;
    let list = all["exchanges"].as_array().ok_or("it has no array `exchanges`")?;
    let one = |(index, fields): (usize, &Value)| {
        let wrong = |what: &str| format!("exchange {}: {what}", index + 1);
        let mech = fields["mech"].as_str().ok_or_else(|| wrong("it has no `mech`"))?.to_owned();
        let source = fields["source"].as_str().unwrap_or("no source").to_owned();
        let mut lines = Vec::new();
        for line in fields["exchange"].as_array().into_iter().flatten() {
            let side = if line["c"].is_string() { "c" } else { "s" };
            let octets = line[side].as_str().and_then(unbase64);
            lines.push((side == "c", octets.ok_or_else(|| wrong("a line is neither c nor s in base64"))?));
        }
        Ok(Vector { mech, source, lines, fields: fields.clone() })
    };
    list.iter().enumerate().map(one).collect()
}

impl Vector {
    fn text(&self, key: &str) -> &str {
        self.fields[key].as_str().unwrap_or_default()
    }

    fn octets(&self, key: &str) -> Vec<u8> {
        unbase64(self.text(key)).unwrap_or_default()
    }

    fn side(&self, client: bool) -> Vec<Vec<u8>> {
        self.lines.iter().filter(|(side, _)| *side == client).map(|(_, octets)| octets.clone()).collect()
    }

    /// What the client says.
    pub fn client_words(&self) -> Vec<Vec<u8>> {
        self.side(true)
    }

    /// What the server says.
    pub fn server_words(&self) -> Vec<Vec<u8>> {
        self.side(false)
    }

    /// Whether the client may speak first.
    pub fn client_begins(&self) -> bool {
        match self.fields["initial"].as_bool() {
            Some(initial) => initial,
            None => self.lines.first().is_some_and(|(client, _)| *client),
        }
    }

    /// What must come out: success, or a failure class.
    pub fn outcome(&self) -> &str {
        self.fields["outcome"].as_str().unwrap_or("success")
    }

    /// The client that says this.
    pub fn person(&self) -> Person {
        let first = self.side(true).into_iter().next().unwrap_or_default();
        let first = String::from_utf8_lossy(&first).into_owned();
        let mut person = Person { password: self.text("password").into(), ..Person::user() };
        person.authzid = self.text("authzid").into();
        person.token = if self.text("token").is_empty() { person.token } else { self.text("token").into() };
        let name = |text: &str| text.replace("=2C", ",").replace("=3D", "=");
        match Kind::of(&self.mech) {
            Some(Kind::Scram(..)) => {
                let fields: Vec<&str> = first.split(',').collect();
                let of = |at: usize, prefix: &str| {
                    fields.get(at).and_then(|field| field.strip_prefix(prefix)).unwrap_or_default()
                };
                person.gs2 = fields.first().copied().unwrap_or_default().into();
                (person.authzid, person.authcid) = (name(of(1, "a=")), name(of(2, "n=")));
                person.nonce = of(3, "r=").into();
                person.binding = self.octets("channel_binding_b64");
            }
            Some(Kind::CramMd5) => person.authcid = first.rsplit_once(' ').map_or("", |(user, _)| user).into(),
            Some(Kind::Login) => person.authcid = first,
            Some(Kind::Xoauth2) => {
                let user = first.split('\u{1}').next().and_then(|field| field.strip_prefix("user="));
                person.authcid = user.unwrap_or_default().into();
            }
            _ => {}
        }
        for key in ["authcid", "username"] {
            if !self.text(key).is_empty() {
                person.authcid = self.text(key).into();
            }
        }
        person
    }

    /// The world in which it happens, and the connection.
    pub fn world(&self, traits: &Traits) -> (World, Facts) {
        let mut world = World::default();
        let person = self.person();
        if !person.authcid.is_empty() && !person.password.is_empty() {
            world.users.insert(person.authcid.clone().into(), person.password.clone());
        }
        if !person.authzid.is_empty() {
            world.proxies.insert((person.authcid.clone().into(), person.authzid.clone().into()));
        }
        if !self.text("token").is_empty() {
            let whose = [&person.authzid, &person.authcid].into_iter().find(|name| !name.is_empty());
            world.tokens.insert(person.token.clone().into(), whose.cloned().unwrap_or_default());
        }
        if !self.text("salt_b64").is_empty() {
            let iterations = self.fields["iterations"].as_u64().and_then(|count| u32::try_from(count).ok());
            world.salt = (self.octets("salt_b64"), iterations.unwrap_or(4096));
        }
        if !person.binding.is_empty() {
            world.binding = person.binding;
        }
        if self.outcome() != "success"
            && let Some(error) = self.side(false).last()
        {
            world.token_error = String::from_utf8_lossy(error).into_owned();
        }
        let mut facts = traits.facts();
        let first = self.side(true).into_iter().next().unwrap_or_default();
        let host = first.split(|octet| *octet == 1).find_map(|field| field.strip_prefix(b"host="));
        if let Some(host) = host {
            facts.sni = String::from_utf8_lossy(host).into_owned();
        }
        (world, facts)
    }

    /// Runs it; a fault is what differs.
    pub fn check(&self, stepper: &mut impl Stepper, traits: &Traits) -> Result<(), Fault> {
        let wrong = |what: String| Fault::new("P7", format!("{} ({}): {what}", self.mech, self.source));
        let (world, facts) = self.world(traits);
        let entropy = self.octets("entropy_b64");
        match Kind::of(&self.mech) {
            Some(kind) if kind.computes() && entropy.is_empty() => {
                self.check_our_client(kind).map_err(wrong)?;
                let mut person = self.person();
                if kind == Kind::DigestMd5 {
                    person.authzid.clear();
                }
                let plan = Plan { initial: !traits.server_first, ..Plan::client(facts, kind, person) };
                let story = run(stepper, traits, &world, &plan)?;
                self.check_end(&story).map_err(wrong)
            }
            _ => {
                let mut plan = Plan::words(facts, self.client_begins() && !traits.server_first, self.side(true));
                if !entropy.is_empty() {
                    let mut fixed = Fixed { stepper, entropy };
                    return self.check_words(&run(&mut fixed, traits, &world, &plan)?, true).map_err(wrong);
                }
                self.check_words(&run(stepper, traits, &world, &plan)?, true).map_err(wrong)?;
                // The same without an initial response: an empty challenge comes first.
                if plan.initial && traits.client_first && self.fields["initial"].is_null() {
                    plan.initial = false;
                    let story = run(stepper, traits, &world, &plan)?;
                    let first = story.steps.first().map(|(_, answer)| (answer.action, answer.data.0.len()));
                    if first != Some((action::CHALLENGE, 0)) {
                        return Err(wrong("without an initial response the first challenge is not empty".into()));
                    }
                    self.check_words(&story, false).map_err(wrong)?;
                }
                Ok(())
            }
        }
    }

    fn check_our_client(&self, kind: Kind) -> Result<(), String> {
        let person = self.person();
        if kind == Kind::DigestMd5 {
            let (user, realm, password) = (self.text("username"), self.text("realm"), self.text("password"));
            let (nonce, cnonce, uri) = (self.text("nonce"), self.text("cnonce"), self.text("digest_uri"));
            let digest = DigestMd5 { user, realm, password, nonce, cnonce, uri, authzid: "" };
            let same = digest.response("AUTHENTICATE") == self.text("response")
                && digest.response("") == self.text("rspauth")
                && client::hex(&client::md5(format!("{user}:{realm}:{password}").as_bytes())) == self.text("ha1_hex");
            return if same { Ok(()) } else { Err("the vector contradicts RFC 2831".into()) };
        }
        let mut client = Client::new(kind, person);
        let (mut said, mut pending) = (Vec::new(), client.initial());
        for (from_client, octets) in &self.lines {
            if *from_client {
                said = pending.take().ok_or("the vector's client speaks out of turn")?;
                if said != *octets {
                    return Err(format!("our client says {}, the vector {}", shown(&said), shown(octets)));
                }
            } else {
                pending = Some(client.answer(octets)?);
            }
        }
        drop(said);
        Ok(())
    }

    fn check_words(&self, story: &Story, exact: bool) -> Result<(), String> {
        let expected = self.side(false);
        let mut sent: Vec<&Octets> = Vec::new();
        for (_, answer) in &story.steps {
            let last = answer.flags & out_flag::FINAL_DATA != 0;
            if answer.action == action::CHALLENGE || last {
                sent.push(&answer.data);
            }
            self.check_effect(answer)?;
        }
        if !exact {
            sent.remove(0);
        }
        let refused = matches!(story.end, End::Refused(_));
        for at in 0..sent.len().max(expected.len()) {
            let (found, wanted) = (sent.get(at).map(|octets| &octets.0), expected.get(at));
            if found != wanted && !refused {
                let show = |octets: Option<&Vec<u8>>| octets.map_or("nothing".into(), |octets| shown(octets));
                return Err(format!(
                    "the server's message {} is {}, published is {}",
                    at + 1,
                    show(found),
                    show(wanted)
                ));
            }
        }
        self.check_end(story)
    }

    fn check_effect(&self, answer: &Answer) -> Result<(), String> {
        let pairs: &[(&str, &Octets)] = match answer.action {
            action::VERIFY_PASSWORD => {
                &[("authcid", &answer.authcid), ("authzid", &answer.authzid), ("password", &answer.data)]
            }
            action::VERIFY_TOKEN => &[("authzid", &answer.authzid), ("token", &answer.data)],
            action::VERIFY_EXTERNAL => &[("authzid", &answer.authzid)],
            action::FETCH_KEY => &[("authcid", &answer.authcid), ("authzid", &answer.authzid)],
            _ => &[],
        };
        for (key, found) in pairs {
            match self.fields[*key].as_str() {
                Some(wanted) if wanted.as_bytes() != found.0 => {
                    return Err(format!("{key} is {found}, published is {wanted:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_end(&self, story: &Story) -> Result<(), String> {
        let found = match &story.end {
            End::Success => "success".to_owned(),
            End::Failure(class) => class_name(*class).to_ascii_lowercase(),
            End::Refused(_) => "malformed".to_owned(),
            other => in_words(other),
        };
        if found == self.outcome() {
            Ok(())
        } else {
            Err(format!("it ends with {found}, published is {}", self.outcome()))
        }
    }
}

/// The same 64 octets in every event.
struct Fixed<'a, S: Stepper> {
    stepper: &'a mut S,
    entropy: Vec<u8>,
}

impl<S: Stepper> Stepper for Fixed<'_, S> {
    fn begin(&mut self) -> Result<(), Fault> {
        self.stepper.begin()
    }

    fn step(&mut self, facts: &Facts, moment: &Moment) -> Result<Answer, Fault> {
        let mut moment = moment.clone();
        if !moment.entropy.0.is_empty() {
            moment.entropy = Octets(self.entropy.clone());
        }
        self.stepper.step(facts, &moment)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.stepper.finish()
    }
}

#[cfg(test)]
pub(crate) fn tests_traits(name: &str) -> Traits {
    Traits {
        name: name.into(),
        client_first: true,
        server_first: false,
        allow_nul: true,
        utf8: false,
        entropy: true,
        anonymous: false,
        self_asserts: false,
        channel_bind: false,
        message_octets_max: 64,
        steps_max: 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_client_agrees_with_every_published_vector() {
        let vectors = parse(PUBLISHED).unwrap();
        let mut computed = 0;
        for vector in &vectors {
            if let Some(kind) = Kind::of(&vector.mech).filter(|kind| kind.computes()) {
                vector.check_our_client(kind).unwrap_or_else(|why| panic!("{} {}: {why}", vector.mech, vector.source));
                computed += 1;
            }
        }
        assert!(computed >= 12 && vectors.len() >= 30, "{computed} of {}", vectors.len());
    }

    #[test]
    fn what_is_no_vector_is_named() {
        for (json, why) in [
            ("", "not JSON"),
            ("{}", "exchanges"),
            (r#"{"exchanges":[{}]}"#, "exchange 1: it has no `mech`"),
            (r#"{"exchanges":[{"mech":"X","exchange":[{"c":"???"}]}]}"#, "base64"),
        ] {
            assert!(parse(json).unwrap_err().contains(why), "{json}");
        }
    }
}

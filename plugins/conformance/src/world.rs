//! A host without a server: users, tokens and channel bindings of the test world, effects and their ledger, and
//! the loop that runs one exchange against a mechanism. Everything follows from the plan: no clock, no chance.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use portreeve_plugin_abi::{action, binding, conn, fail, key, mech_flag, out_flag, status};
use serde::{Deserialize, Serialize};

use crate::client::{self, Client, Hash, Kind, Person};
use crate::event::{Answer, Event, Facts, Moment, Octets, Outcome, ScramKey, class_name, effect_name, shown};
use crate::sandbox::{Bound, Declared, Edge, Fault, Room};

/// Runs the steps of exchanges, here or in another process.
pub trait Stepper {
    /// A new exchange.
    fn begin(&mut self) -> Result<(), Fault>;
    /// Its next step.
    fn step(&mut self, facts: &Facts, moment: &Moment) -> Result<Answer, Fault>;
    /// It is over.
    fn finish(&mut self) -> Result<(), Fault>;
}

/// Steps in this process.
pub struct Local<'a> {
    /// The mechanism.
    pub bound: &'a Bound,
    /// Its memory.
    pub room: Room,
    /// Where objects lie.
    pub edge: Edge,
    /// What the scratch holds before a step.
    pub fill: u8,
}

impl<'a> Local<'a> {
    /// With memory of its own.
    pub fn new(bound: &'a Bound) -> Result<Self, Fault> {
        let room = Room::new(bound).map_err(|error| Fault::new("M2", format!("no memory for the check: {error}")))?;
        Ok(Self { bound, room, edge: Edge::End, fill: 0 })
    }
}

impl Stepper for Local<'_> {
    fn begin(&mut self) -> Result<(), Fault> {
        self.room.begin(self.bound, self.edge, self.fill);
        Ok(())
    }

    fn step(&mut self, facts: &Facts, moment: &Moment) -> Result<Answer, Fault> {
        self.room.step(self.bound, facts, moment)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.room.finish(self.bound)
    }
}

/// How effects end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// As the world knows.
    Truth,
    /// Always with this status; with OK as if it were true.
    Force(u32),
    /// OK, but this for the effect with this number.
    At(usize, u32),
    /// Nobody exists: keys are made up, passwords and tokens are wrong.
    Decoy,
}

/// What is known about a mechanism before it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traits {
    /// Its name.
    pub name: String,
    /// `PRV_M_*`.
    pub client_first: bool,
    /// An initial response is refused by the host.
    pub server_first: bool,
    /// Messages may hold NUL.
    pub allow_nul: bool,
    /// Messages are UTF-8.
    pub utf8: bool,
    /// Gets entropy.
    pub entropy: bool,
    /// Grants no identity.
    pub anonymous: bool,
    /// Proves by itself.
    pub self_asserts: bool,
    /// Needs channel binding.
    pub channel_bind: bool,
    /// Longest message.
    pub message_octets_max: usize,
    /// Most steps.
    pub steps_max: u32,
}

impl Traits {
    /// Of a loaded mechanism.
    pub fn of(declared: &Declared) -> Self {
        Self {
            name: declared.name.clone(),
            client_first: declared.has(mech_flag::CLIENT_FIRST),
            server_first: declared.has(mech_flag::SERVER_FIRST),
            allow_nul: declared.has(mech_flag::ALLOW_NUL),
            utf8: declared.has(mech_flag::UTF8),
            entropy: declared.has(mech_flag::ENTROPY),
            anonymous: declared.has(mech_flag::ANONYMOUS),
            self_asserts: declared.has(mech_flag::SELF_ASSERTS),
            channel_bind: declared.has(mech_flag::CHANNEL_BIND),
            message_octets_max: declared.message_octets_max(),
            steps_max: declared.steps_max(),
        }
    }

    /// Why the host would not hand this to the mechanism.
    pub fn refuses(&self, event: &Event) -> Option<&'static str> {
        let message = event.message()?;
        if matches!(event, Event::Start(Some(_))) && self.server_first {
            Some("an initial response, but the server speaks first")
        } else if message.len() > self.message_octets_max {
            Some("message longer than max_message")
        } else if !self.allow_nul && message.contains(&0) {
            Some("NUL in the message, without PRV_M_ALLOW_NUL")
        } else if self.utf8 && std::str::from_utf8(message).is_err() {
            Some("message is not UTF-8")
        } else {
            None
        }
    }

    /// The connection that this mechanism is offered on.
    pub fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        if self.channel_bind {
            facts.cb_types = 1 << binding::TLS_EXPORTER | 1 << binding::TLS_SERVER_END_POINT;
        }
        facts
    }
}

/// Kind of key, user, realm.
type Asked = (u32, Vec<u8>, Vec<u8>);

/// Who exists.
#[derive(Clone, Debug)]
pub struct World {
    /// Name and password.
    pub users: BTreeMap<Vec<u8>, String>,
    /// Token and whose it is.
    pub tokens: BTreeMap<Vec<u8>, String>,
    /// Who may act as whom.
    pub proxies: BTreeSet<(Vec<u8>, Vec<u8>)>,
    /// What VERIFY_TOKEN says about a bad one.
    pub token_error: String,
    /// SCRAM salt and iterations.
    pub salt: (Vec<u8>, u32),
    /// What CHANNEL_BINDING gives.
    pub binding: Vec<u8>,
    keys: RefCell<BTreeMap<Asked, Outcome>>,
}

impl Default for World {
    fn default() -> Self {
        let person = Person::user();
        let users = [("user", "pencil"), ("tim", "tanstaaftanstaaf"), ("chris", "secret")];
        Self {
            users: users.map(|(name, password)| (name.into(), password.to_owned())).into(),
            tokens: [(person.token.clone().into_bytes(), "user".to_owned()), (b"token".to_vec(), "user".to_owned())]
                .into(),
            proxies: BTreeSet::new(),
            token_error: r#"{"status":"invalid_token"}"#.into(),
            salt: ((0..16).collect(), 4096),
            binding: (0..32).collect(),
            keys: RefCell::default(),
        }
    }
}

/// A line of the ledger.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its number.
    pub handle: u32,
    /// Which effect.
    pub effect: u32,
    /// How it ended.
    pub status: u32,
    /// Whether nobody of that name exists.
    pub doomed: bool,
    /// Whether the world itself has checked the client's secret, and it was right.
    pub verified: bool,
    /// Whether the client may act as whom it wants to.
    pub authorized: bool,
}

impl World {
    /// Ends an effect.
    pub fn perform(&self, answer: &Answer, policy: Policy, handle: u32) -> (Outcome, Entry) {
        let (mut status, mut verified, mut doomed) = (status::OK, false, false);
        let mut outcome = Outcome { effect: answer.action, handle, ..Outcome::default() };
        match answer.action {
            action::VERIFY_PASSWORD => {
                verified = self.users.get(&answer.authcid.0).is_some_and(|known| known.as_bytes() == answer.data.0);
                verified &= policy != Policy::Decoy;
                status = if verified { status::OK } else { status::DENIED };
            }
            action::FETCH_KEY => {
                let user = self.users.get(&answer.authcid.0).filter(|_| policy != Policy::Decoy);
                doomed = user.is_none();
                outcome = Outcome { handle, ..self.key(answer, user.map(String::as_str)) };
            }
            action::VERIFY_TOKEN => {
                // Whom to act as, where it is said, must be whose token it is.
                let whose = self.tokens.get(&answer.data.0);
                let hint = &answer.authzid.0;
                verified = whose.is_some_and(|whose| hint.is_empty() || whose.as_bytes() == hint);
                verified &= policy != Policy::Decoy;
                status = if verified { status::OK } else { status::DENIED };
            }
            action::VERIFY_EXTERNAL => {
                // The certificate stands for anybody whom it asks to be.
                verified = policy != Policy::Decoy;
                status = if verified { status::OK } else { status::DENIED };
            }
            action::CHANNEL_BINDING => {
                let known = answer.arg == binding::TLS_EXPORTER || answer.arg == binding::TLS_SERVER_END_POINT;
                status = if known { status::OK } else { status::UNSUPPORTED };
                outcome.data = Octets(self.binding.clone());
            }
            _ => {
                verified = policy != Policy::Decoy;
                status = if verified { status::OK } else { status::DENIED };
            }
        }
        if let Policy::Force(forced) = policy {
            verified |= forced == status::OK;
            status = forced;
        }
        if status != status::OK {
            (outcome.data, outcome.scram) = (Octets::default(), None);
            if answer.action == action::VERIFY_TOKEN {
                outcome.data = self.token_error.as_str().into();
            }
        }
        outcome.status = status;
        let (authcid, authzid) = (&answer.authcid.0, &answer.authzid.0);
        let authorized = authzid.is_empty()
            || authcid.is_empty()
            || authcid == authzid
            || self.proxies.contains(&(authcid.clone(), authzid.clone()));
        (outcome, Entry { handle, effect: answer.action, status, doomed, verified, authorized })
    }

    /// The key of a user, or one that is made up from the name.
    fn key(&self, answer: &Answer, password: Option<&str>) -> Outcome {
        let (kind, user, realm) = (answer.arg, &answer.authcid.0, &answer.data.0);
        let cached = (kind | if password.is_some() { 0 } else { 1 << 16 }, user.clone(), realm.clone());
        if let Some(outcome) = self.keys.borrow().get(&cached) {
            return outcome.clone();
        }
        let made_up = |label: &str| Hash::Sha512.hmac(b"decoy", &[label.as_bytes(), user, realm].concat());
        let scram = |hash: Hash| {
            let octets = hash.digest(b"").len();
            let cut = |octets_of: Vec<u8>| octets_of.get(..octets).unwrap_or_default().to_vec();
            let (salt, iterations) = self.salt.clone();
            let (salt, (stored, server)) = match password {
                Some(password) => (salt.clone(), hash.scram_keys(password.as_bytes(), &salt, iterations)),
                None => {
                    let made = made_up("salt").get(..salt.len()).unwrap_or_default().to_vec();
                    (made, (cut(made_up("stored")), cut(made_up("server"))))
                }
            };
            let (salt, stored_key, server_key) = (Octets(salt), Octets(stored), Octets(server));
            Outcome { scram: Some(ScramKey { iterations, salt, stored_key, server_key }), ..Outcome::default() }
        };
        let data = |octets: Vec<u8>| Outcome { data: Octets(octets), ..Outcome::default() };
        let first = |count: usize| made_up("key").get(..count).unwrap_or_default().to_vec();
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        let outcome = match (kind, password) {
            (key::SCRAM_SHA1, _) => scram(Hash::Sha1),
            (key::SCRAM_SHA256, _) => scram(Hash::Sha256),
            (key::SCRAM_SHA512, _) => scram(Hash::Sha512),
            (key::CRAM_MD5_CTX, Some(password)) => data(client::cram_context(password.as_bytes())),
            (key::CRAM_MD5_CTX, None) => data(first(32)),
            (key::DIGEST_MD5_HA1, Some(password)) => {
                data(client::md5(format!("{}:{}:{password}", text(user), text(realm)).as_bytes()))
            }
            (key::DIGEST_MD5_HA1, None) => data(first(16)),
            (_, Some(password)) => data(password.as_bytes().to_vec()),
            (_, None) => data(client::hex(&first(12)).into_bytes()),
        };
        let outcome = Outcome { effect: action::FETCH_KEY, ..outcome };
        self.keys.borrow_mut().insert(cached, outcome.clone());
        outcome
    }
}

/// Who speaks for the client.
#[derive(Clone, Debug)]
pub enum Voice {
    /// These messages, one after the other.
    Words(Vec<Vec<u8>>),
    /// A client of the mechanism.
    Client(Box<Client>),
}

/// All that an exchange follows from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The connection.
    pub facts: Facts,
    /// The 64 octets of each event follow from it.
    pub entropy: u64,
    /// Whether the first message comes with START.
    pub initial: bool,
    /// What the client says.
    pub voice: Voice,
    /// How effects end.
    pub policy: Policy,
    /// Steps after which the client goes away.
    pub steps_max: u32,
    /// Outcomes are damaged: keys of a wrong size, no salt, endless JSON. Drawn from this.
    pub damage: Option<u64>,
}

impl Plan {
    /// These messages, the truth.
    pub fn words(facts: Facts, initial: bool, words: Vec<Vec<u8>>) -> Self {
        Self {
            facts,
            entropy: 1,
            initial,
            voice: Voice::Words(words),
            policy: Policy::Truth,
            steps_max: u32::MAX,
            damage: None,
        }
    }

    /// A client of a known mechanism.
    pub fn client(facts: Facts, kind: Kind, person: Person) -> Self {
        let voice = Voice::Client(Box::new(Client::new(kind, person)));
        Self { voice, initial: true, ..Self::words(facts, true, vec![]) }
    }
}

/// How an exchange ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With an identity.
    Success,
    /// With this class.
    Failure(u32),
    /// The client has nothing more to say; the server waits.
    Waiting,
    /// The plan's steps are used up.
    Left,
    /// The host does not hand the message on.
    Refused(&'static str),
    /// The client does not understand the server.
    Puzzled(String),
    /// OFFLOAD where it is not followed.
    Offload,
}

/// What was said and answered.
#[derive(Clone, Debug)]
pub struct Story {
    /// Each step.
    pub steps: Vec<(Moment, Answer)>,
    /// What the client said, in order.
    pub words: Vec<Vec<u8>>,
    /// The ledger.
    pub ledger: Vec<Entry>,
    /// The end.
    pub end: End,
}

impl Story {
    /// Names of the answers.
    pub fn shape(&self) -> Vec<(u32, u32, u32, [usize; 4])> {
        self.steps.iter().map(|(_, answer)| answer.shape()).collect()
    }

    /// For people: what was said last.
    pub fn last_words(&self) -> String {
        let last = self.steps.iter().rev().find_map(|(moment, _)| moment.event.message());
        last.map_or("no message".into(), |message| format!("the message {}", shown(message)))
    }

    /// The effect that the success rests on.
    pub fn proof(&self) -> Option<&Entry> {
        let (_, answer) = self.steps.last().filter(|(_, answer)| answer.action == action::SUCCESS)?;
        self.ledger.iter().find(|entry| entry.handle == answer.handle)
    }

    /// P3: whether a success rests on a proof.
    pub fn judge(&self, traits: &Traits) -> Result<(), Fault> {
        let Some((_, answer)) = self.steps.last().filter(|(_, answer)| answer.action == action::SUCCESS) else {
            return Ok(());
        };
        if answer.flags & out_flag::SELF_ASSERTED != 0 && traits.self_asserts {
            return Ok(());
        }
        if traits.anonymous && answer.handle == 0 {
            return Ok(());
        }
        let after = self.last_words();
        let Some(entry) = self.ledger.iter().find(|entry| entry.handle == answer.handle) else {
            let text =
                format!("SUCCESS with handle {}, which no effect of this exchange has, after {after}", answer.handle);
            return Err(Fault::new("P3", text));
        };
        let effect = effect_name(entry.effect);
        if entry.status != status::OK {
            return Err(Fault::new("P3", format!("SUCCESS although {effect} did not end with OK, after {after}")));
        }
        if entry.effect == action::CHANNEL_BINDING {
            return Err(Fault::new("P3", format!("SUCCESS by CHANNEL_BINDING, which proves nobody, after {after}")));
        }
        if entry.doomed {
            let text = format!("SUCCESS with the made-up key of a user who does not exist, after {after}");
            return Err(Fault::new("P3", text));
        }
        let bound =
            self.ledger.iter().any(|entry| entry.effect == action::CHANNEL_BINDING && entry.status == status::OK);
        if traits.channel_bind && !bound {
            return Err(Fault::new("P8", format!("SUCCESS without having asked for CHANNEL_BINDING, after {after}")));
        }
        Ok(())
    }
}

/// 64 octets for event `at` of an exchange.
pub fn entropy(seed: u64, at: usize) -> Vec<u8> {
    let mut state = Random::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(at as u64));
    (0..8).flat_map(|_| state.next().to_le_bytes()).collect()
}

/// Runs one exchange.
pub fn run(stepper: &mut impl Stepper, traits: &Traits, world: &World, plan: &Plan) -> Result<Story, Fault> {
    stepper.begin()?;
    let mut story = Story { steps: vec![], words: vec![], ledger: vec![], end: End::Left };
    let ran = converse(stepper, traits, world, plan, &mut story);
    stepper.finish()?;
    ran.map(|()| story)
}

fn converse(
    stepper: &mut impl Stepper,
    traits: &Traits,
    world: &World,
    plan: &Plan,
    story: &mut Story,
) -> Result<(), Fault> {
    let mut voice = plan.voice.clone();
    let mut words = match &mut voice {
        Voice::Words(words) => std::mem::take(words).into_iter(),
        Voice::Client(_) => vec![].into_iter(),
    };
    let initial = match &mut voice {
        _ if !plan.initial => None,
        Voice::Words(_) => words.next(),
        Voice::Client(client) => client.initial(),
    };
    let mut event = Event::Start(initial.map(Octets));
    loop {
        if let Some(message) = event.message() {
            story.words.push(message.to_vec());
        }
        if let Some(why) = traits.refuses(&event) {
            story.end = End::Refused(why);
            return Ok(());
        }
        let octets = if traits.entropy { entropy(plan.entropy, story.steps.len()) } else { Vec::new() };
        let moment = Moment { event, entropy: Octets(octets) };
        let answer = stepper.step(&plan.facts, &moment)?;
        let count = story.steps.len() as u32 + 1;
        story.steps.push((moment, answer.clone()));
        let is_last = matches!(answer.action, action::SUCCESS | action::FAIL);
        if !is_last && count >= traits.steps_max {
            let text = format!("{} after {count} steps, and max_steps is {}", answer.name(), traits.steps_max);
            return Err(Fault::new("A5", text));
        }
        if !is_last && count >= plan.steps_max {
            return Ok(());
        }
        event = match answer.action {
            action::SUCCESS | action::FAIL => {
                let is_success = answer.action == action::SUCCESS;
                // Policy is the host's: whoever may not act as somebody else hears what a wrong password hears.
                let authorized = !is_success || story.proof().is_none_or(|entry| entry.authorized);
                story.end = match (is_success, authorized) {
                    (true, true) => End::Success,
                    (true, false) => End::Failure(fail::AUTHZ),
                    (false, _) => End::Failure(answer.arg),
                };
                if answer.flags & out_flag::FINAL_DATA != 0
                    && is_success
                    && let Voice::Client(client) = &mut voice
                    && let Err(why) = client.answer(&answer.data.0)
                {
                    story.end = End::Puzzled(why);
                }
                if let Voice::Client(client) = &voice
                    && is_success
                    && story.end == End::Success
                    && !client.is_content()
                {
                    story.end = End::Puzzled("success without the server's own proof".into());
                }
                return Ok(());
            }
            action::CHALLENGE => {
                let next = match &mut voice {
                    Voice::Words(_) => words.next(),
                    Voice::Client(client) => match client.answer(&answer.data.0) {
                        Ok(message) => Some(message),
                        Err(why) => {
                            story.end = End::Puzzled(why);
                            return Ok(());
                        }
                    },
                };
                match next {
                    Some(message) => Event::Message(Octets(message)),
                    None => {
                        story.end = End::Waiting;
                        return Ok(());
                    }
                }
            }
            action::OFFLOAD => Event::Resume,
            _ => {
                let policy = match plan.policy {
                    Policy::At(at, status) => Policy::Force(if at == story.ledger.len() { status } else { status::OK }),
                    other => other,
                };
                let (mut outcome, entry) = world.perform(&answer, policy, 40 + count);
                if let Some(seed) = plan.damage {
                    damage(&mut outcome, &mut Random::new(seed ^ u64::from(count)));
                }
                story.ledger.push(entry);
                Event::Result(outcome)
            }
        };
    }
}

/// What no host should send, and a mechanism must bear.
fn damage(outcome: &mut Outcome, random: &mut Random) {
    let some = |random: &mut Random| -> Octets {
        let octets = [0, 1, 15, 16, 17, 20, 31, 32, 33, 64, 65, 300, 65_536][random.below(13)];
        Octets((0..octets).map(|_| random.next() as u8).collect())
    };
    match (random.below(6), outcome.scram.as_mut()) {
        (0, Some(key)) => key.iterations = [0, 1, u32::MAX][random.below(3)],
        (1, Some(key)) => key.salt = some(random),
        (2, Some(key)) => key.stored_key = some(random),
        (3, Some(key)) => key.server_key = some(random),
        (4, _) => outcome.scram = None,
        (5, _) => outcome.status = [77, u32::MAX][random.below(2)],
        _ => outcome.data = some(random),
    }
}

/// What an exchange came to, in a few words.
pub fn in_words(end: &End) -> String {
    match end {
        End::Success => "SUCCESS".into(),
        End::Failure(class) => format!("FAIL {}", class_name(*class)),
        End::Waiting => "waits for the client".into(),
        End::Left => "left".into(),
        End::Refused(why) => format!("refused by the host: {why}"),
        End::Puzzled(why) => format!("not understood by the client: {why}"),
        End::Offload => "OFFLOAD".into(),
    }
}

/// Whether the -PLUS sibling was offered.
pub fn with_sibling(mut facts: Facts) -> Facts {
    facts.conn_flags |= conn::CB_SIBLING;
    facts
}

/// splitmix64: chance that can be repeated.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

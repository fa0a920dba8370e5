//! B1 to B4: the rules for credential back ends. They may block and allocate, so what is looked at is what they
//! answer: to names that nobody has, to what they do not provide, and to many at once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use link::backend::{BROKEN, Call, Effect, Reply};
use plugin_host::{Backend, Registry, Terms};
use portreeve_plugin_abi::{REPLY_MAX, action, key, status};

use crate::job::{Job, Pipe};
use crate::rules::Verdict;
use crate::schema;

/// Octets behind the buffer that nobody may write to.
const CANARY: [u8; 64] = [0xa5; 64];
/// Who is certainly nobody.
const NOBODY: &[u8] = b"portreeve-check-nobody@example.invalid";
/// Threads that ask at once, at most.
const THREADS: usize = 8;

/// A rule that was found broken.
type Broken = (&'static str, String);

/// What was answered.
#[derive(Clone, PartialEq, Eq)]
struct Said {
    status: u32,
    found: bool,
    parts: [Vec<u8>; 5],
}

/// One question.
#[derive(Clone)]
struct Question {
    effect: u32,
    arg: u32,
    name: Vec<u8>,
    data: Vec<u8>,
}

/// Looks at the back end `job.mech` of a library that was sealed before.
pub fn check(pipe: &Pipe, job: &Job, sealed: Result<(String, std::os::fd::OwnedFd), String>, threads: Asking) {
    let name = &job.mech;
    let mut registry = Registry::new();
    let loaded = sealed.and_then(|(id, fd)| {
        let terms = Terms { process: true, self_asserts: true };
        registry.load(&id, fd, &job.file, terms).map_err(|error| error.to_string())
    });
    let listed = registry.list().into_iter().flat_map(|library| library.backends).find(|one| one.name == *name);
    let (Ok(()), Some(listed)) = (loaded, listed) else { return };
    // D1, as for mechanisms.
    let described = schema::read(listed.settings_schema.as_deref());
    let judged = match &described {
        Err(cause) => Err(format!("config_schema {cause}")),
        Ok(schema) => schema.try_out(job.settings.as_deref(), &mut |settings| {
            registry.backend_unchecked(name, settings).map(drop).map_err(|error| error.to_string())
        }),
    };
    match judged {
        Ok(()) => pipe.finding("D1", name, Verdict::Pass, ""),
        Err(cause) => pipe.finding("D1", name, Verdict::Fail, cause),
    }
    let settings = job.settings.clone().unwrap_or_else(|| described.map_or("{}".into(), |schema| schema.working()));
    let backend = match registry.backend_unchecked(name, &settings) {
        Ok(backend) => Arc::new(backend),
        Err(_) => return,
    };
    let tried = try_out(&backend, listed.provides, threads);
    let broken = tried.as_ref().err().map(|(rule, _)| *rule);
    if let Err((rule, text)) = &tried {
        pipe.finding(rule, name, Verdict::Fail, text.clone());
    }
    let mute = tried == Ok(false);
    // What comes after the first broken rule was not decided.
    for rule in ["B1", "B2", "B3", "B4"].into_iter().take_while(|rule| Some(*rule) != broken) {
        match (rule, mute) {
            ("B2" | "B4", true) => {
                let text = "it answers TEMPFAIL to everything; give settings that work with --config";
                pipe.finding(rule, name, Verdict::Skip, text);
            }
            _ => pipe.finding(rule, name, Verdict::Pass, ""),
        }
    }
}

/// `Ok(false)`: it can answer nothing here.
fn try_out(backend: &Arc<Backend>, provides: u64, threads: Asking) -> Result<bool, Broken> {
    let questions = questions(provides);
    let mut answers = Vec::new();
    for question in &questions {
        answers.push(says(backend, question).map_err(|text| ("B1", text))?);
    }
    for (question, said) in questions.iter().zip(&answers) {
        complete(question, said).map_err(|text| ("B1", text))?;
    }
    let plain = |question: &Question| question.name == NOBODY;
    let mute =
        questions.iter().zip(&answers).all(|(question, said)| !plain(question) || said.status == status::TEMPFAIL);
    for (question, said) in
        questions.iter().zip(&answers).filter(|(question, _)| question.effect != action::BACKEND_CALL)
    {
        let who = shown(&question.name);
        if said.status == status::OK && said.found {
            return Err(("B2", format!("{}: OK for {who}, whom nobody knows", effect_name(question.effect))));
        }
        if said.status == status::TEMPFAIL && !mute && !plain(question) {
            return Err(("B2", format!("{}: TEMPFAIL for the name {who}", effect_name(question.effect))));
        }
    }
    for question in strange(provides) {
        let (first, second) = (says(backend, &question), says(backend, &question));
        let (Ok(first), Ok(second)) = (first, second) else {
            return Err(("B3", format!("effect {} with argument {}: nonsense", question.effect, question.arg)));
        };
        if first.status != status::UNSUPPORTED || first != second {
            let text = format!("effect {} with argument {}: status {}", question.effect, question.arg, first.status);
            return Err(("B3", format!("{text}, then {}; not UNSUPPORTED, twice", second.status)));
        }
    }
    if !mute {
        threads.ask(backend, &questions, &answers).map_err(|text| ("B4", text))?;
    }
    Ok(!mute)
}

/// Every effect that it serves, for names that nobody has.
fn questions(provides: u64) -> Vec<Question> {
    let mut names: Vec<Vec<u8>> = [
        NOBODY,
        b"",
        b"'",
        b"' OR '1'='1",
        b"\"; DROP TABLE users; --",
        b"*",
        b"*)(uid=*",
        b"\\",
        b"%s%n%n",
        b"../../etc/passwd",
        b"nobody\0@example.invalid",
        b"nobody\n@example.invalid",
        b"nobody\r\n",
        b"nobody:x",
        b"\xff\xfe",
        b"\xe2\x80\xa8",
        b"nobody\xe2\x80\xa9",
        b"-1",
        b"$(id)",
        b"nobody@example.invalid ",
    ]
    .map(<[u8]>::to_vec)
    .into();
    names.extend([255, 256, 1025, 65_536].map(|octets| vec![b'a'; octets]));
    let kinds =
        [key::SCRAM_SHA1, key::SCRAM_SHA256, key::SCRAM_SHA512, key::DIGEST_MD5_HA1, key::CRAM_MD5_CTX, key::CLEARTEXT];
    let mut questions = Vec::new();
    for name in &names {
        for (effect, args) in [
            (action::VERIFY_PASSWORD, &[0][..]),
            (action::FETCH_KEY, &kinds),
            (action::VERIFY_TOKEN, &[0]),
            (action::VERIFY_EXTERNAL, &[0]),
            (action::BACKEND_CALL, &[0]),
        ] {
            for arg in args.iter().filter(|_| provides & action::need(effect) != 0) {
                // What is asked about is in the name for a password and a key, in the data for the others.
                let named = matches!(effect, action::VERIFY_PASSWORD | action::FETCH_KEY);
                let data = match (named, effect) {
                    (true, action::VERIFY_PASSWORD) => b"portreeve-check".to_vec(),
                    (true, _) => Vec::new(),
                    (false, _) => name.clone(),
                };
                questions.push(Question { effect, arg: *arg, name: name.clone(), data });
            }
        }
    }
    questions
}

/// What it does not serve, and what nobody does.
fn strange(provides: u64) -> Vec<Question> {
    let question = |effect, arg| Question { effect, arg, name: NOBODY.to_vec(), data: b"x".to_vec() };
    let mut all: Vec<Question> = (action::VERIFY_PASSWORD..=action::BACKEND_CALL)
        .filter(|effect| provides & action::need(*effect) == 0)
        .map(|effect| question(effect, key::SCRAM_SHA256))
        .collect();
    all.extend([question(40, 0), question(79, 0), question(0, 0)]);
    if provides & action::need(action::FETCH_KEY) != 0 {
        all.push(question(action::FETCH_KEY, 99));
    }
    all
}

fn says(backend: &Backend, question: &Question) -> Result<Said, String> {
    let cap = REPLY_MAX as usize;
    let mut scratch = vec![0; cap];
    scratch.extend_from_slice(&CANARY);
    let named = matches!(question.effect, action::VERIFY_PASSWORD | action::FETCH_KEY);
    let effect = Effect {
        effect: question.effect,
        arg: question.arg,
        conn_flags: 1,
        tls_version: 0x0304,
        session: 1,
        client_ip: [192, 0, 2, 1].into(),
        mechanism: "X-CHECK",
        listener: "check",
        sni: "",
        authcid: if named { &question.name } else { b"" },
        authzid: b"",
        data: &question.data,
        data2: b"",
        service: b"check",
    };
    let call = Call { backend: "", deadline_ms: u64::MAX, effect };
    let mut said = Err("no answer".to_owned());
    let (buffer, _) = scratch.split_at_mut(cap);
    backend.handle_anything(&call, buffer, |reply: &Reply<'_>| {
        let parts = [reply.identity, reply.data, reply.salt, reply.stored_key, reply.server_key].map(<[u8]>::to_vec);
        said = match reply.status {
            BROKEN => Err(String::from_utf8_lossy(reply.diagnosis).into_owned()),
            status => Ok(Said { status, found: reply.found, parts }),
        };
    });
    let about = || format!("{} for {}", effect_name(question.effect), shown(&question.name));
    if scratch.get(cap..) != Some(&CANARY[..]) {
        return Err(format!("{}: it writes beyond its buffer", about()));
    }
    said.map_err(|text| format!("{}: {text}", about()))
}

/// Whether a good answer has what belongs to it.
fn complete(question: &Question, said: &Said) -> Result<(), String> {
    if said.status != status::OK || !said.found {
        return Ok(());
    }
    let [identity, data, salt, stored_key, server_key] = said.parts.each_ref().map(Vec::len);
    let hash = match question.arg {
        key::SCRAM_SHA1 => 20,
        key::SCRAM_SHA256 => 32,
        key::SCRAM_SHA512 => 64,
        _ => 0,
    };
    let good = match question.effect {
        action::VERIFY_TOKEN | action::VERIFY_EXTERNAL => identity > 0,
        action::FETCH_KEY if hash > 0 => salt > 0 && (stored_key, server_key) == (hash, hash),
        action::FETCH_KEY => data > 0,
        _ => true,
    };
    if good { Ok(()) } else { Err(format!("{}: OK, and what belongs to it is missing", effect_name(question.effect))) }
}

/// Threads that were there before the sandbox was.
pub struct Asking(Vec<(Sender<Turn>, Receiver<Asked>)>);

/// What answered otherwise than before.
type Asked = Result<(), String>;

/// Where to begin is each thread's own: in step they would all ask the same at the same time.
type Turn = (Arc<Backend>, Arc<Vec<(Question, Said)>>, usize);

impl Asking {
    /// Starts them.
    pub fn start() -> Self {
        let thread = |_| {
            let (turns, turn) = channel::<Turn>();
            let (done, results) = channel();
            std::thread::spawn(move || {
                while let Ok((backend, expected, first)) = turn.recv() {
                    let mut order = expected.iter().cycle().skip(first).take(expected.len());
                    let wrong = order.find_map(|(question, before)| match says(&backend, question) {
                        Ok(said) if said == *before => None,
                        _ => Some(format!("{} for {}", effect_name(question.effect), shown(&question.name))),
                    });
                    if done.send(wrong.map_or(Ok(()), Err)).is_err() {
                        return;
                    }
                }
            });
            (turns, results)
        };
        Self((0..THREADS).map(thread).collect())
    }

    /// As many as the back end wants ask the same at once.
    fn ask(&self, backend: &Arc<Backend>, questions: &[Question], answers: &[Said]) -> Result<(), String> {
        let expected = Arc::new(questions.iter().cloned().zip(answers.iter().cloned()).collect::<Vec<_>>());
        let most = usize::try_from(backend.parallel()).unwrap_or(THREADS).clamp(1, THREADS);
        let asked = self.0.get(..most).unwrap_or_default();
        let until = Instant::now() + MEETING;
        let mut rounds = 0;
        while rounds < ROUNDS_MIN || Instant::now() < until {
            rounds += 1;
            for (at, (turn, _)) in asked.iter().enumerate() {
                let _ = turn.send((Arc::clone(backend), Arc::clone(&expected), at * expected.len() / most));
            }
            for (_, result) in asked {
                if let Ok(Err(what)) = result.recv() {
                    return Err(format!("{what}: another answer when {most} ask at once"));
                }
            }
        }
        Ok(())
    }
}

/// How often everything is asked by all at once, at least.
const ROUNDS_MIN: usize = 2;
/// For so long it is asked again and again: threads meet by chance, and seldom where others work beside them.
const MEETING: Duration = Duration::from_millis(500);

fn effect_name(effect: u32) -> &'static str {
    action::EFFECTS.iter().find(|(_, number)| *number == effect).map_or("an unknown effect", |(name, _)| name)
}

fn shown(name: &[u8]) -> String {
    let head = name.get(..40).unwrap_or(name);
    let cut = if name.len() > head.len() { format!("… ({} octets)", name.len()) } else { String::new() };
    format!("{:?}{cut}", String::from_utf8_lossy(head))
}

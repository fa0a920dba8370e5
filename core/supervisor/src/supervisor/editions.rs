//! Libraries that have processes of their own: each content of a library's file, on its terms, is an edition.
//!
//! ```text
//! Coming ── its reload holds ──→ Serving ── a reload does without it ──→ Leaving ── its process is gone ──→ forgotten
//!    │                             │  ↑                                     ↑
//!    │         five deaths a minute↓  │ a reload                            │
//!    │                           GivenUp ───────────────────────────────────┤
//!    └── its reload fails ──────────────────────────────────────────────────┘
//! ```
//!
//! Here is what they are; the process of each is in its post ([`Edition::post`]) like all others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use link::Role;

use super::processes::Processes;
use crate::plan::{Plan, Plugin};
use crate::process::{Phase, Post};

/// A library whose process died so often within a minute is not started again before the next reload.
const DEATHS_MAX: usize = 5;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);
/// Older editions of libraries that still finish exchanges; further reloads wait.
const LEAVING_MAX: usize = 16;

/// One content of a library's file, and the process that runs it.
pub struct Edition {
    /// Unique while the supervisor lives, rising: its generation for those who ask it.
    pub number: u32,
    /// For its mechanisms or for its back ends.
    pub role: Role,
    pub plugin: Plugin,
    pub standing: Standing,
    deaths: VecDeque<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Part of a reload that is not done.
    Coming,
    Serving,
    /// It died too often.
    GivenUp,
    /// Finishes its exchanges.
    Leaving,
}

/// What nobody can have any more because its process died too often.
pub struct GivenUp {
    pub names: Vec<String>,
    pub cause: String,
}

impl Edition {
    pub fn post(&self) -> Post {
        Post::library(self.role, self.number)
    }

    fn should_run(&self) -> bool {
        matches!(self.standing, Standing::Coming | Standing::Serving)
    }

    /// Whether it is what a plan means by this library.
    fn is_of(&self, plugin: &Plugin) -> bool {
        plugin.roles().contains(&self.role) && self.plugin.same(plugin)
    }

    /// The mechanisms that it offers, as far as this process has to do with them.
    pub fn mechanisms(&self) -> &[String] {
        if self.role == Role::MechanismHost { &self.plugin.mechanisms } else { &[] }
    }

    /// The same of back ends.
    pub fn backends(&self) -> &[String] {
        if self.role == Role::BackendHost { &self.plugin.backends } else { &[] }
    }

    /// How often its process died lately.
    pub fn deaths(&self) -> usize {
        self.deaths.len()
    }
}

/// All that serve, will serve, or have served and finish.
#[derive(Default)]
pub struct Editions {
    all: Vec<Edition>,
    /// Numbers given so far.
    made: u32,
}

impl Editions {
    pub fn iter(&self) -> impl Iterator<Item = &Edition> {
        self.all.iter()
    }

    /// Whose post this is.
    pub fn of(&self, post: Post) -> Option<&Edition> {
        self.all.iter().find(|edition| edition.post() == post)
    }

    /// Whether it is the post of one that a reload brings.
    pub fn is_coming(&self, post: Post) -> bool {
        self.of(post).is_some_and(|edition| edition.standing == Standing::Coming)
    }

    /// Posts that should be filled.
    pub fn posts(&self) -> impl Iterator<Item = Post> {
        self.all.iter().filter(|edition| edition.should_run()).map(Edition::post)
    }

    /// Whether all that should run do.
    pub fn are_ready(&self, processes: &Processes) -> bool {
        self.posts().all(|post| processes.holder(post).is_some_and(|process| process.phase == Phase::Ready))
    }

    /// Whether as many finish as may.
    pub fn are_many_leaving(&self) -> bool {
        self.all.iter().filter(|edition| edition.standing == Standing::Leaving).count() >= LEAVING_MAX
    }

    /// One for each library of `plan` whose content none has yet.
    pub fn add(&mut self, plan: &Plan, standing: Standing) {
        for plugin in &plan.plugins {
            for role in plugin.roles() {
                let has = |edition: &Edition| {
                    let serves = matches!(edition.standing, Standing::Serving | Standing::GivenUp);
                    serves && edition.role == role && edition.plugin.same(plugin)
                };
                if !self.all.iter().any(has) {
                    self.made += 1;
                    let (number, plugin) = (self.made, plugin.clone());
                    self.all.push(Edition { number, role, plugin, standing, deaths: VecDeque::new() });
                }
            }
        }
    }

    /// The plan holds: what it wants serves, with a new chance for those that had died too often; the others finish.
    pub fn exchange(&mut self, plan: &Plan) {
        for edition in &mut self.all {
            let wanted = edition.standing != Standing::Leaving && plan.plugins.iter().any(|one| edition.is_of(one));
            edition.standing = if wanted { Standing::Serving } else { Standing::Leaving };
            edition.deaths.clear();
        }
    }

    /// The reload failed: what it brought goes.
    pub fn withdraw(&mut self) {
        for edition in self.all.iter_mut().filter(|edition| edition.standing == Standing::Coming) {
            edition.standing = Standing::Leaving;
        }
    }

    /// Those that are wanted no more and whose process is gone are no more.
    pub fn forget(&mut self, processes: &Processes) {
        self.all.retain(|edition| edition.standing != Standing::Leaving || processes.holder(edition.post()).is_some());
    }

    /// Counts a death; it may have been one too many.
    pub fn count_death(&mut self, post: Post, cause: &str) -> Option<GivenUp> {
        let now = Instant::now();
        let edition = self.all.iter_mut().find(|edition| edition.post() == post && edition.should_run())?;
        edition.deaths.push_back(now);
        edition.deaths.retain(|then| now.duration_since(*then) < DEATHS_WITHIN);
        if edition.deaths.len() < DEATHS_MAX {
            return None;
        }
        edition.standing = Standing::GivenUp;
        let backends = edition.backends().iter().map(|name| format!("back end {name}"));
        let id = &edition.plugin.id;
        Some(GivenUp {
            names: edition.mechanisms().iter().cloned().chain(backends).collect(),
            cause: format!("the process of plugin {id} died {DEATHS_MAX} times within a minute: {cause}"),
        })
    }
}

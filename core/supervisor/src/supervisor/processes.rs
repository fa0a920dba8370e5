//! All children that live.

use std::ops::{Deref, DerefMut};

use link::Role;
use link::message::Message;

use crate::process::{Phase, Post, Process};

/// A list with the questions that are asked of it.
#[derive(Default)]
pub(super) struct Processes(Vec<Process>);

impl Processes {
    pub fn add(&mut self, process: Process) {
        self.0.push(process);
    }

    /// Takes one out. The last one has its place then.
    pub fn take(&mut self, at: usize) -> Process {
        self.0.swap_remove(at)
    }

    pub fn holder(&self, post: Post) -> Option<&Process> {
        self.0.iter().find(|process| process.post == post)
    }

    pub fn of(&self, role: Role) -> impl Iterator<Item = &Process> {
        self.0.iter().filter(move |process| process.role() == role)
    }

    pub fn of_mut(&mut self, role: Role) -> impl Iterator<Item = &mut Process> {
        self.0.iter_mut().filter(move |process| process.role() == role)
    }

    /// Whether a generation of so many workers serves as a whole.
    pub fn is_ready(&self, generation: u32, workers: usize) -> bool {
        let of_it = self.of(Role::Worker).filter(|worker| worker.post.generation == generation);
        of_it.filter(|worker| worker.phase == Phase::Ready).count() == workers
    }

    pub fn tell_workers(&mut self, message: &Message<'_>) {
        self.of_mut(Role::Worker).for_each(|worker| worker.say(message, None));
    }
}

impl Deref for Processes {
    type Target = [Process];

    fn deref(&self) -> &[Process] {
        &self.0
    }
}

impl DerefMut for Processes {
    fn deref_mut(&mut self) -> &mut [Process] {
        &mut self.0
    }
}

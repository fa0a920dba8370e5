//! Bugs that tests plant, to see that the tests find them. In a program there are none: [`planted`] is a constant there.

/// What a broken spool would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// "Durable" is said before the sync.
    AcknowledgeEarly,
    /// A new segment's name is not made durable.
    NoSegmentName,
    /// A writer's folder's name is not made durable.
    NoHomeName,
    /// A large body is not synced before its record.
    NoBodySync,
    /// A large body's name is not made durable.
    NoBodyName,
    /// The segment after a failed one does not say how far that one may be read.
    NoSeal,
    /// A failed sync is tried again and believed.
    RetrySync,
    /// A record's length is trusted without its checksum.
    TrustLength,
    /// The first bad record ends the reading.
    StopAtBad,
    /// A copy of a record somewhere else counts as a record.
    AnyOffset,
    /// All segments have the same salt.
    NoSalt,
    /// Delivery reads a living writer's segment to its end.
    ReadBeyondBell,
    /// Acknowledgements are not synced.
    NoAckSync,
    /// A body goes before the acknowledgement is durable.
    BodyFirst,
    /// A segment's acknowledgements go before the segment is gone for good.
    AcksFirst,
    /// An abandoned body stays on the disk.
    KeepAborted,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether this thread has this bug.
#[inline]
pub(crate) fn planted(bug: Bug) -> bool {
    current() == Some(bug)
}

/// This thread's bug; threads that it starts get it, too.
#[inline]
pub(crate) fn current() -> Option<Bug> {
    #[cfg(test)]
    return PLANTED.get();
    #[cfg(not(test))]
    None
}

/// Gives this thread a bug.
#[inline]
pub(crate) fn plant(bug: Option<Bug>) {
    #[cfg(test)]
    PLANTED.set(bug);
    #[cfg(not(test))]
    let _ = bug;
}

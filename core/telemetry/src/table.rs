//! Every number that Portreeve keeps, as rows. Names, layout of the shared pages, Prometheus text and JSON
//! are made from them; a new number begins (and ends) here.

use link::Role;

/// What a row says about its number.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Prometheus name without the prefix `portreeve_`.
    pub name: &'static str,
    /// A fixed label, `cause="rate"`, or nothing. Rows of one name differ in it and stand together.
    pub label: &'static str,
    /// The role that always shows it, zero or not; the others show it when they have something.
    pub owner: Role,
    /// What it means.
    pub help: &'static str,
}

macro_rules! rows {
    ($(#[$doc:meta])* $kind:ident { $($variant:ident $name:literal [$label:literal] $owner:ident $help:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum $kind { $(#[doc = $help] $variant,)* }

        impl $kind {
            /// All of them, in the order of the pages.
            pub const ALL: &'static [$kind] = &[$($kind::$variant,)*];
            const ROWS: &'static [Row] =
                &[$(Row { name: $name, label: $label, owner: Role::$owner, help: $help },)*];

            /// What the table says about it.
            pub fn row(self) -> &'static Row {
                &Self::ROWS[self as usize]
            }
        }
    };
}

rows! {
    /// Numbers that only grow.
    Counter {
        ConnectionsAccepted "connections_total" [r#"result="accepted""#] Worker "Connections by what became of them.";
        ConnectionsRefusedTotal "connections_total" [r#"result="refused-total""#] Worker "Refused: sessions_max reached.";
        ConnectionsRefusedPrefix "connections_total" [r#"result="refused-prefix""#] Worker "Refused: too many from one prefix.";
        ConnectionsRefusedRate "connections_total" [r#"result="refused-rate""#] Worker "Refused: too fast from one prefix.";
        ConnectionsRefusedOverload "connections_total" [r#"result="refused-overload""#] Worker "Refused: descriptors or memory.";
        AcceptPauses "accept_pauses_total" [""] Worker "Pauses of accepting because descriptors ran out (EMFILE).";
        SessionsTimedOut "sessions_timed_out_total" [""] Worker "Sessions ended by a deadline.";
        EarlyTalkers "early_talkers_total" [""] Worker "Clients that talked before the greeting or a synchronisation point.";
        TlsHandshakesOk "tls_handshakes_total" [r#"result="ok""#] Worker "TLS handshakes by result.";
        TlsHandshakesFailed "tls_handshakes_total" [r#"result="failed""#] Worker "TLS handshakes that failed.";
        TlsResumed "tls_resumed_total" [""] Worker "Successful handshakes that resumed a session.";
        StarttlsTrailingOctets "starttls_trailing_octets_total" [""] Worker "Octets after STARTTLS that were thrown away (RFC 3207 section 6).";
        Commands "commands_total" [""] Worker "Command lines.";
        Replies2 "replies_total" [r#"class="2""#] Worker "Replies by class.";
        Replies3 "replies_total" [r#"class="3""#] Worker "Replies 3yz.";
        Replies4 "replies_total" [r#"class="4""#] Worker "Replies 4yz.";
        Replies5 "replies_total" [r#"class="5""#] Worker "Replies 5yz.";
        AuthAttempts "auth_attempts_total" [""] Worker "AUTH commands.";
        AuthOk "auth_total" [r#"result="ok""#] Worker "Logins by result.";
        AuthFailed "auth_total" [r#"result="failed""#] Worker "Logins that failed.";
        AuthTemporary "auth_total" [r#"result="temporary""#] Worker "Logins that could not be judged (454).";
        AuthLimited "auth_total" [r#"result="limited""#] Worker "AUTH commands refused by a limit.";
        MessagesAccepted "messages_total" [r#"result="accepted""#] Worker "Messages by what became of them.";
        MessagesAborted "messages_total" [r#"result="aborted""#] Worker "Transactions that ended without a message.";
        MessagesInDoubt "messages_in_doubt_total" [""] Worker "Messages passed through that may come twice.";
        OctetsReceived "octets_total" [r#"direction="in""#] Worker "Octets on client connections.";
        OctetsSent "octets_total" [r#"direction="out""#] Worker "Octets sent to clients.";
        MessageOctets "message_octets_total" [""] Worker "Octets of accepted messages.";
        RecipientsAccepted "recipients_total" [r#"result="accepted""#] Worker "Recipients by reply.";
        RecipientsRefused "recipients_total" [r#"result="refused""#] Worker "Recipients refused.";
        EffectsTimedOut "effects_timed_out_total" [""] Worker "Effects whose deadline passed.";
        DirectoryQuestions "directory_questions_total" [""] Worker "Questions sent to the directory.";
        DirectoryCacheHits "directory_cache_hits_total" [""] Worker "Questions answered from a worker's cache.";
        DirectoryTemporary "directory_temporary_total" [""] Worker "Questions that ended without an answer.";
        DirectoryAnswers "directory_answers_total" [""] Directory "Answers given.";
        DirectoryHashes "directory_hashes_total" [""] Directory "Password hashes computed.";
        DirectoryReloadsOk "directory_reloads_total" [r#"result="ok""#] Directory "Readings of the users file by result.";
        DirectoryReloadsFailed "directory_reloads_total" [r#"result="failed""#] Directory "Users files that were refused; the old content stays.";
        SpoolCommits "spool_commits_total" [""] Worker "Messages made durable.";
        SpoolSyncs "spool_syncs_total" [""] Worker "Syncs; one serves all messages that waited.";
        SpoolFailures "spool_failures_total" [""] Worker "Writes or syncs that failed.";
        SpoolRefusedSpace "spool_refused_space_total" [""] Worker "Messages refused because the disk is below its floor.";
        Delivered "deliveries_total" [r#"result="delivered""#] Delivery "Hand-on attempts per recipient by result.";
        DeliveryFailed "deliveries_total" [r#"result="failed""#] Delivery "Recipients given up.";
        Deferred "deliveries_total" [r#"result="deferred""#] Delivery "Attempts to be repeated.";
        Bounces "bounces_total" [""] Delivery "Non-delivery reports made.";
        SpoolRecovered "spool_recovered_total" [""] Delivery "Messages found in segments whose writer was gone.";
        SpoolCorrupt "spool_corrupt_total" [""] Delivery "Damaged records put aside.";
        LogDropped "log_records_dropped_total" [""] Worker "Log records dropped because the log writer was slow.";
        AuditFull "audit_full_total" [""] Worker "AUTH or MAIL refused because audit records could not be handed over.";
        LogLines "log_lines_total" [""] Control "Lines written to the log.";
        PluginStepBreaches "plugin_step_breaches_total" [""] Worker "Steps of a mechanism that broke its contract or its time.";
        Panics "panics_total" [""] Worker "Sessions ended by a bug of ours.";
        LinkUnknown "link_unknown_frames_total" [""] Worker "Frames of a kind that this process does not know.";
        LinkBad "link_bad_packets_total" [""] Worker "Packets between processes that broke the form.";
        CertificateReloadsOk "certificate_reloads_total" [r#"result="ok""#] Supervisor "Readings of certificates by result.";
        CertificateReloadsFailed "certificate_reloads_total" [r#"result="failed""#] Supervisor "Certificates that were refused; the old ones stay.";
        ReloadsOk "reloads_total" [r#"result="ok""#] Supervisor "Reloads of the configuration by result.";
        ReloadsFailed "reloads_total" [r#"result="failed""#] Supervisor "Reloads that were refused; the old configuration stays.";
        ProcessesStarted "processes_started_total" [""] Supervisor "Processes started.";
        ProcessesDied "processes_died_total" [""] Supervisor "Processes that ended without being asked to.";
    }
}

rows! {
    /// Numbers that rise and fall. A dead process' are set to zero by the supervisor.
    Gauge {
        Sessions "sessions" [""] Worker "Sessions now.";
        SessionsTls "sessions_tls" [""] Worker "Sessions inside TLS now.";
        SessionsAuthenticated "sessions_authenticated" [""] Worker "Sessions that have logged in, now.";
        EffectsPending "effects_pending" [""] Worker "Effects under way.";
        MemorySessions "memory_octets" [r#"class="sessions""#] Worker "Memory by class, octets.";
        MemoryTls "memory_octets" [r#"class="tls""#] Worker "TLS states.";
        MemoryBuffers "memory_octets" [r#"class="buffers""#] Worker "Partial lines and unsent replies.";
        MemoryMessages "memory_octets" [r#"class="messages""#] Worker "Message octets on their way to the spool.";
        MemoryCache "memory_octets" [r#"class="cache""#] Worker "Verified-password cache.";
        MemoryUsers "memory_octets" [r#"class="users""#] Directory "Users in memory.";
        DescriptorsMax "descriptors_max" [""] Worker "Descriptors that the process may have.";
        Users "users" [""] Directory "Users loaded.";
        Queued "queue_recipients" [""] Delivery "Recipients that wait for hand-on.";
        QueueOldest "queue_oldest_unix_seconds" [""] Delivery "When the oldest waiting message was accepted; 0 when none waits.";
        SpoolOctets "spool_octets" [""] Delivery "Octets of spool segments on disk.";
        Generation "generation" [""] Supervisor "The generation of workers that accepts.";
        Generations "generations" [""] Supervisor "Generations of workers alive.";
        CertificateExpiry "certificate_expiry_unix_seconds" [""] Supervisor "End of validity of the certificate that ends first; 0 without.";
    }
}

rows! {
    /// Distributions. Times are microseconds in the pages and seconds in the exposition.
    Histogram {
        HandshakeMicros "tls_handshake_seconds" [""] Worker "From the first octet of a handshake to its end.";
        LoginMicros "login_seconds" [""] Worker "From AUTH to the final reply, with what the client took.";
        CommitMicros "commit_seconds" [""] Worker "From the end of a message to its outcome, where it waited for the disk.";
        TurnMicros "turn_seconds" [""] Worker "One turn of an event loop.";
        QuestionMicros "directory_question_seconds" [""] Worker "From a question to the directory's answer.";
        SyncMicros "spool_sync_seconds" [""] Worker "One sync of the spool.";
        SessionMicros "session_seconds" [""] Worker "Life of a session.";
        HandOnMicros "hand_on_seconds" [""] Delivery "From acceptance to delivery.";
        MessageOctetsSpread "message_size_octets" [""] Worker "Sizes of accepted messages.";
    }
}

impl Counter {
    /// The counter of a reply code's class.
    pub fn replies(code: u16) -> Counter {
        match code / 100 {
            2 => Self::Replies2,
            3 => Self::Replies3,
            4 => Self::Replies4,
            _ => Self::Replies5,
        }
    }
}

impl Histogram {
    /// By what a value is divided for the exposition.
    pub(crate) fn divisor(self) -> f64 {
        if self.row().name.ends_with("_seconds") { 1e6 } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rows_have_distinct_names_and_families_stand_together() {
        let counters = Counter::ALL.iter().map(|row| row.row());
        let gauges = Gauge::ALL.iter().map(|row| row.row());
        let histograms = Histogram::ALL.iter().map(|row| row.row());
        let rows: Vec<_> = counters.chain(gauges).chain(histograms).collect();
        let mut seen = HashSet::new();
        let mut families = HashSet::new();
        for (i, row) in rows.iter().enumerate() {
            assert!(seen.insert((row.name, row.label)), "{} {}", row.name, row.label);
            if i == 0 || rows[i - 1].name != row.name {
                assert!(families.insert(row.name), "{} stands in two places", row.name);
            }
            assert!(row.name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_' || c.is_ascii_digit()));
            assert!(row.help.ends_with('.') && !row.help.contains(['\n', '\\']));
        }
        assert!(Counter::ALL.iter().all(|counter| counter.row().name.ends_with("_total")));
    }
}

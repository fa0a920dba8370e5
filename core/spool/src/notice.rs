//! What the operator should hear of a spool.

use std::{fmt, io};

use smtp::id::QueueId;

use crate::names;
use crate::segment::WriterId;

/// What the operator should hear.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A writer is gone; what it left is being recovered.
    WriterGone {
        /// Who.
        writer: WriterId,
        /// Segments it left.
        segments: usize,
    },
    /// Octets that are no good message were copied to `corrupt/`.
    Damaged {
        /// Whose segment.
        writer: WriterId,
        /// Which.
        segment: u64,
        /// First octet.
        from: u64,
        /// Behind the last octet.
        to: u64,
        /// The message, when its record's header can be read.
        id: Option<QueueId>,
        /// The copy, below the spool's folder.
        kept: String,
    },
    /// A whole file was moved to `corrupt/`.
    SetAside {
        /// Which, below the spool's folder.
        file: String,
        /// Where it is now.
        kept: String,
        /// Why.
        why: &'static str,
    },
    /// A file of a later version, left as it is.
    LaterVersion {
        /// Which, below the spool's folder.
        file: String,
        /// Its version.
        version: u8,
    },
    /// A message's own body file is not there.
    BodyMissing {
        /// Whose.
        id: QueueId,
    },
    /// The disk failed; it is tried again.
    Trouble {
        /// What failed, naming the file.
        what: String,
        /// How.
        error: io::Error,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriterGone { writer, segments } => {
                write!(f, "writer {writer} is gone; recovering {segments} segments")
            }
            Self::Damaged { writer, segment, from, to, id, kept } => {
                let file = names::segment(*writer, *segment);
                write!(f, "{file}: octets {from} to {to} are damaged")?;
                id.iter().try_for_each(|id| write!(f, " (message {id})"))?;
                write!(f, "; copied to {kept}")
            }
            Self::SetAside { file, kept, why } => write!(f, "{file}: {why}; moved to {kept}"),
            Self::LaterVersion { file, version } => {
                write!(f, "{file}: format version {version} is of a later program; left for it")
            }
            Self::BodyMissing { id } => write!(f, "{id}: the body's file is missing; record copied to corrupt/"),
            Self::Trouble { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

/// Takes notices.
pub trait Watch: Send + Sync {
    /// One thing that the operator should hear.
    fn notice(&self, notice: &Notice);
}

impl<F: Fn(&Notice) + Send + Sync> Watch for F {
    fn notice(&self, notice: &Notice) {
        self(notice);
    }
}

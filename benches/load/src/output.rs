//! Where a result goes. That it can be written there is found out before anything is measured; an ordinary file is
//! replaced by the complete result, or stays what it was.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

/// A place that was looked at and can be written to.
#[derive(Debug)]
pub enum Output {
    /// `-`
    Standard,
    /// An ordinary file, or none yet: the new one takes its place when it is complete.
    Replaced(PathBuf),
    /// A device, a pipe, a file that somebody has opened for us, or one in a folder that is not ours.
    InPlace {
        /// As it was named.
        path: PathBuf,
        /// Open for appending.
        file: File,
        /// What is in it goes.
        emptied: bool,
    },
}

impl Output {
    /// Finds out what is there and whether it can be written to; leaves nothing behind.
    pub fn find(path: &Path) -> Result<Self, String> {
        if path == Path::new("-") {
            return Ok(Self::Standard);
        }
        Self::look(path).map_err(|error| format!("{}: {error}; the result cannot be written there", path.display()))
    }

    fn look(path: &Path) -> io::Result<Self> {
        let open = |emptied| {
            let file = OpenOptions::new().append(true).open(path)?;
            Ok(Self::InPlace { path: path.to_owned(), file, emptied })
        };
        let known = match fs::metadata(path) {
            Ok(there) if !there.is_file() || is_open(&there) => return open(false),
            // Whoever may not write to it may not replace it either.
            Ok(_) => Some(open(true)?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let path = led_to(path)?;
        match (beside(&path), known) {
            (Ok((temporary, _)), _) => fs::remove_file(temporary).map(|()| Self::Replaced(path)),
            (Err(_), Some(in_place)) => Ok(in_place),
            (Err(error), None) => Err(error),
        }
    }

    /// Writes all of it.
    pub fn write(self, text: &str) -> Result<(), String> {
        match self {
            // Whoever reads it may have heard enough.
            Self::Standard => {
                io::stdout().write_all(text.as_bytes()).map_err(|error| format!("standard output: {error}"))
            }
            Self::Replaced(path) => replace(&path, text).map_err(|error| format!("{}: {error}", path.display())),
            Self::InPlace { path, mut file, emptied } => {
                let empty = if emptied { file.set_len(0) } else { Ok(()) };
                let written = empty.and_then(|()| file.write_all(text.as_bytes()));
                written.map_err(|error| format!("{}: {error}", path.display()))
            }
        }
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let (temporary, mut file) = beside(path)?;
    let mut fill = || {
        if let Ok(old) = fs::metadata(path) {
            // Where it is not ours to give away, it stays ours.
            let _ = fchown(&file, Some(old.uid()), Some(old.gid()));
            file.set_permissions(old.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    let filled = fill();
    if filled.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    filled
}

/// A new file in the same folder, on the same file system.
fn beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut number = 0;
    loop {
        let temporary = path.with_file_name(format!(".portreeve-load-{}-{number}", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            // Somebody's who was killed.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < NUMBERS_MAX => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Whether one of our descriptors is open on it (/dev/stdout, /dev/fd/3): whoever opened it for us would not see
/// another file that takes its place.
fn is_open(there: &Metadata) -> bool {
    let same = |other: Metadata| (other.dev(), other.ino()) == (there.dev(), there.ino());
    let ours = fs::read_dir("/proc/self/fd").map(|entries| entries.flatten().map(|entry| entry.path()));
    ours.is_ok_and(|mut paths| paths.any(|path| fs::metadata(path).is_ok_and(same)))
}

/// The file that links lead to: it is replaced, and they stay.
fn led_to(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many links"))
}

const NUMBERS_MAX: u32 = 100;
const LINKS_MAX: u32 = 40;

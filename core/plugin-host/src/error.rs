use std::fmt;
use std::io;
use std::path::PathBuf;

use sasl::MechanismName;

/// Why a mechanism library was not taken into service. `Display` is one line: what, why, and what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// Not `[a-z0-9_]{1,32}`.
    BadId {
        /// As configured.
        id: String,
    },
    /// No file of this id anywhere.
    NotFound {
        /// The library.
        id: String,
        /// All files that were looked for.
        tried: Vec<PathBuf>,
    },
    /// The file cannot be read.
    Unreadable {
        /// The library.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody else could change the file.
    Ownership {
        /// The library.
        path: PathBuf,
        /// The file or directory that is at fault.
        at: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Not the file that the configuration pins.
    Checksum {
        /// The library.
        path: PathBuf,
        /// As configured, hexadecimal.
        expected: String,
        /// Of the file, hexadecimal.
        found: String,
    },
    /// No library for this host at all.
    NotAPlugin {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        cause: String,
    },
    /// Built against another major of the ABI.
    AbiMajor {
        /// The library.
        path: PathBuf,
        /// What it was built against.
        found: u16,
        /// What this host speaks.
        spoken: u16,
    },
    /// A panic in it would end the process.
    Aborts {
        /// The library.
        path: PathBuf,
    },
    /// The sealed copy could not be made.
    Seal {
        /// The library.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The descriptor that came is not a sealed copy.
    Unsealed {
        /// Where the library came from.
        origin: PathBuf,
        /// What is wrong with it.
        error: io::Error,
    },
    /// The dynamic linker refused it.
    Open {
        /// Where the library came from.
        origin: PathBuf,
        /// What the linker said.
        cause: String,
    },
    /// The library does not want to run in this host.
    Refused {
        /// Where the library came from.
        origin: PathBuf,
        /// Its own words.
        message: String,
    },
    /// What the library says of itself cannot be.
    Handshake {
        /// Where the library came from.
        origin: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// The same id was loaded already.
    DuplicateId {
        /// The id.
        id: String,
    },
    /// Two libraries offer one SASL name; taking either silently would surprise somebody.
    DuplicateName {
        /// The name.
        name: MechanismName,
        /// Which has it already.
        first: PathBuf,
        /// Which brings it again.
        second: PathBuf,
    },
    /// No loaded library has it.
    UnknownMechanism {
        /// The name.
        name: MechanismName,
        /// What there is.
        known: Vec<MechanismName>,
    },
    /// It cannot run where it was put, or not on the terms that it was given.
    Unfit {
        /// The mechanism.
        name: MechanismName,
        /// Its library.
        origin: PathBuf,
        /// Why not.
        unfit: Unfit,
    },
    /// A back end cannot work as configured.
    Backend {
        /// The back end.
        name: String,
        /// Its library.
        origin: PathBuf,
        /// What is wrong, often in the library's own words.
        cause: String,
    },
    /// Its settings are wrong.
    Settings {
        /// The mechanism.
        name: MechanismName,
        /// Its library.
        origin: PathBuf,
        /// What is wrong, often in the mechanism's own words.
        cause: String,
    },
}

/// Why a mechanism does not fit where it was put. Shown with the remedy, like `needs …; write …`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Its steps may take long, which an event loop cannot wait for.
    Offloads,
    /// It says itself who somebody is, and the operator has not said that it is to be believed.
    SelfAsserts,
    /// It needs an effect that this host has never heard of.
    LaterMinor,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offloads => {
                "may take long (OFFLOAD), and a worker waits for nobody; write runner = \"process\" in its [[plugins.library]]"
            }
            Self::SelfAsserts => {
                "says itself who somebody is (SELF_ASSERTS); if it is to be believed, write self_asserts = true in its \
                 [[plugins.library]]"
            }
            Self::LaterMinor => "needs an effect of a later ABI minor; take a later release of this program",
        })
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadId { id } => {
                write!(f, "plugin id {id:?}: an id is 1 to 32 of a-z, 0-9 and _; a path belongs into plugins.path")
            }
            Self::NotFound { id, tried } => {
                write!(f, "plugin {id}: not found; install it or set plugins.path; looked for ")?;
                for (index, path) in tried.iter().enumerate() {
                    write!(f, "{}{}", if index == 0 { "" } else { ", " }, path.display())?;
                }
                Ok(())
            }
            Self::Unreadable { path, error } => {
                write!(f, "{}: cannot be read: {error}; make it readable for the supervisor", path.display())
            }
            Self::Ownership { path, at, cause } if path == at => write!(f, "{}: {cause}", path.display()),
            Self::Ownership { path, at, cause } => {
                write!(f, "{}: its directory {}: {cause}", path.display(), at.display())
            }
            Self::Checksum { path, expected, found } => write!(
                f,
                "{}: sha256 is {found}, the configuration pins {expected}; was it updated? then change the pin",
                path.display()
            ),
            Self::NotAPlugin { path, cause } => {
                write!(
                    f,
                    "{}: no Portreeve plugin: {cause}; build it with the SDK or PRV_NOTE of portreeve_plugin.h",
                    path.display()
                )
            }
            Self::AbiMajor { path, found, spoken } => {
                write!(
                    f,
                    "{}: plugin ABI {found}, this host speaks {spoken}; rebuild it against this release",
                    path.display()
                )
            }
            Self::Aborts { path } => write!(
                f,
                "{}: built with panic = \"abort\", a fault would end the worker; build it with panic = \"unwind\"",
                path.display()
            ),
            Self::Seal { path, error } => write!(
                f,
                "{}: cannot copy it into a sealed memfd: {error}; vm.memfd_noexec must not be 2",
                path.display()
            ),
            Self::Unsealed { origin, error } => {
                write!(
                    f,
                    "{}: the descriptor is no sealed copy: {error}; only vetted copies are loaded",
                    origin.display()
                )
            }
            Self::Open { origin, cause } => {
                write!(f, "{}: cannot be loaded: {cause}; are its own libraries installed?", origin.display())
            }
            Self::Refused { origin, message } => write!(f, "{}: refuses this host: {message}", origin.display()),
            Self::Handshake { origin, cause } => {
                write!(f, "{}: {cause}; the library is broken, ask its author", origin.display())
            }
            Self::DuplicateId { id } => write!(f, "plugin {id}: loaded twice; name it once"),
            Self::DuplicateName { name, first, second } => {
                write!(f, "{}: offers {name}, as {} does; load only one of them", second.display(), first.display())
            }
            Self::UnknownMechanism { name, known } => {
                write!(f, "mechanism {name}: no loaded plugin has it; loaded are")?;
                known.iter().try_for_each(|name| write!(f, " {name}"))?;
                f.write_str("; name its plugin under plugins.load")
            }
            Self::Unfit { name, origin, unfit } => write!(f, "{}: {name} {unfit}", origin.display()),
            Self::Backend { name, origin, cause } => {
                write!(f, "back end {name} ({}): {cause}", origin.display())
            }
            Self::Settings { name, origin, cause } => {
                write!(f, "mechanism {name} ({}): {cause}", origin.display())
            }
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { error, .. } | Self::Seal { error, .. } | Self::Unsealed { error, .. } => Some(error),
            _ => None,
        }
    }
}

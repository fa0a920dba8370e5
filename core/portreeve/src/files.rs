//! Folders and files that hold what others must not see.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use link::ids::Ids;
use zeroize::Zeroizing;

use crate::config::Config;

/// Makes a folder, and those above it, with mode 0700; leaves one that is there alone.
pub fn private_folder(path: &Path) -> Result<(), String> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| format!("{}: cannot be made: {error}", path.display()))
}

/// Makes the state folder, such that children can pass through it. Others see nothing in it: what it holds
/// has mode 0700 itself.
pub fn state_folder(config: &Config) -> Result<(), String> {
    let path = &config.process.state_dir;
    private_folder(path)?;
    let Some(ids) = crate::rights::ids(config)? else { return Ok(()) };
    let told = |error: io::Error| format!("{}: {error}", path.display());
    let meta = fs::metadata(path).map_err(told)?;
    if !may_enter(&meta, &ids) {
        fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o777 | 0o011)).map_err(told)?;
    }
    Ok(())
}

fn may_enter(meta: &fs::Metadata, ids: &Ids) -> bool {
    let group = meta.gid() == ids.gid || ids.groups.contains(&meta.gid());
    let bit = if meta.uid() == ids.uid {
        0o100
    } else if group {
        0o010
    } else {
        0o001
    };
    ids.uid == 0 || meta.mode() & bit != 0
}

/// The folder on the way to `path` that `ids` cannot pass; `None` when all is well. Folders that are still
/// to be made do not count, nor does `except`, which is opened by [`state_folder`].
pub fn barrier(path: &Path, ids: &Ids, except: &Path) -> Option<std::path::PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()).collect();
    above.reverse();
    let closed = |folder: &&Path| *folder != except && fs::metadata(folder).is_ok_and(|meta| !may_enter(&meta, ids));
    above.into_iter().find(closed).map(Path::to_owned)
}

/// Makes a folder like [`private_folder`], and gives what was made to the user that children run as.
pub fn folder_of_children(path: &Path, ids: Option<&Ids>) -> Result<(), String> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    private_folder(path)?;
    match ids {
        Some(ids) => missing.into_iter().try_for_each(|folder| give(folder, ids)),
        None => Ok(()),
    }
}

/// Writes a file in one step: whoever reads it sees the old content or the new.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), String> {
    let told = |error: io::Error| format!("{}: cannot be written: {error}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let outcome = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    if outcome.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    outcome.map_err(told)
}

/// 32 octets that stay the same between starts, in a file of mode 0600 that is made when it is missing.
pub fn secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(octets) if octets.len() == 32 => Ok(Zeroizing::new(octets)),
        Ok(octets) => {
            Err(format!("{}: has {} octets instead of 32; remove it to get a new one", path.display(), octets.len()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut octets = Zeroizing::new(vec![0; 32]);
            random(&mut octets)?;
            write(path, &octets, 0o600)?;
            Ok(octets)
        }
        Err(error) => Err(format!("{}: cannot be read: {error}", path.display())),
    }
}

/// Fresh random octets.
pub fn random(octets: &mut [u8]) -> Result<(), String> {
    getrandom::fill(octets).map_err(|error| format!("the system gives no random numbers: {error}"))
}

/// Gives a folder or file to the user that children run as.
pub fn give(path: &Path, ids: &Ids) -> Result<(), String> {
    let meta = fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if (meta.uid(), meta.gid()) == (ids.uid, ids.gid) {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(ids.uid), Some(ids.gid))
        .map_err(|error| format!("{}: cannot be given to user {}: {error}", path.display(), ids.uid))
}

/// Whether `ids` (nobody special: ourselves) may make files in a folder. `Err` says why not.
pub fn writable(path: &Path, ids: Option<&Ids>) -> Result<(), String> {
    // The nearest folder that exists decides whether the rest can be made.
    let mut existing = path;
    while !existing.exists() {
        existing = match existing.parent() {
            Some(parent) => parent,
            None => break,
        };
    }
    let meta = fs::metadata(existing).map_err(|error| format!("{}: {error}", existing.display()))?;
    if !meta.is_dir() {
        return Err(format!("{} is no folder", existing.display()));
    }
    let allowed = match ids {
        // Missing folders are made by the supervisor and given away.
        Some(_) if existing != path => true,
        Some(ids) if ids.uid == 0 => true,
        Some(ids) if meta.uid() == ids.uid => meta.mode() & 0o300 == 0o300,
        Some(ids) if meta.gid() == ids.gid || ids.groups.contains(&meta.gid()) => meta.mode() & 0o030 == 0o030,
        Some(_) => meta.mode() & 0o003 == 0o003,
        None => rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok(),
    };
    if allowed {
        return Ok(());
    }
    let who = ids.map_or_else(|| "by us".to_owned(), |ids| format!("by user {}", ids.uid));
    Err(format!("{} cannot be written {who}", existing.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("portreeve-files-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        private_folder(&path).unwrap();
        path
    }

    #[test]
    fn secrets_stay_and_are_private() {
        let dir = folder("secret");
        let first = secret(&dir.join("decoy")).unwrap();
        assert_eq!(*first, *secret(&dir.join("decoy")).unwrap());
        assert_ne!(*first, vec![0; 32]);
        assert_eq!(fs::metadata(dir.join("decoy")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        fs::write(dir.join("short"), b"x").unwrap();
        assert!(secret(&dir.join("short")).unwrap_err().contains("1 octets instead of 32"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn who_may_write_where() {
        let dir = folder("writable");
        let stranger = Ids { uid: 61_234, gid: 61_234, groups: vec![] };
        assert_eq!(writable(&dir, None), Ok(()));
        assert!(writable(&dir, Some(&stranger)).unwrap_err().contains("cannot be written by user 61234"));
        assert_eq!(writable(&dir.join("new/deep"), Some(&stranger)), Ok(()));
        fs::write(dir.join("file"), b"").unwrap();
        assert!(writable(&dir.join("file/x"), None).unwrap_err().contains("is no folder"));
        fs::remove_dir_all(dir).unwrap();
    }
}

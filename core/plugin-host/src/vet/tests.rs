use super::*;
use std::os::unix::fs::PermissionsExt;

const US: u32 = 1000;

fn verdict(kind: Kind, ownership: Ownership, uid: u32, gid: u32, mode: u32) -> Judgement {
    judge(Owner { uid, gid, mode }, kind, ownership, &Us { uid: US, groups: vec![1000, 27] })
}

#[test]
fn who_may_change_a_file() {
    use Judgement::{Good, Refuse, Remark};
    use Kind::{Directory, File};
    use Ownership::{Relaxed, Strict};
    for (kind, ownership, uid, gid, mode, expected) in [
        (File, Strict, 0, 0, 0o755, "good"),
        (File, Strict, US, 1000, 0o644, "good"),
        (File, Strict, 1001, 0, 0o644, "refuse"),
        (File, Strict, 0, 0, 0o664, "refuse"),
        (File, Strict, 0, 0, 0o646, "refuse"),
        (File, Relaxed, US, 1000, 0o775, "good"),
        (File, Relaxed, US, 1000, 0o777, "refuse"),
        (File, Relaxed, 1001, 1000, 0o755, "refuse"),
        (Directory, Strict, 0, 0, 0o755, "good"),
        (Directory, Strict, 0, 0, 0o1777, "refuse"),
        (Directory, Strict, US, 1000, 0o775, "refuse"),
        (Directory, Strict, 1001, 0, 0o755, "refuse"),
        (Directory, Relaxed, 0, 0, 0o1777, "remark"),
        (Directory, Relaxed, US, 1000, 0o775, "remark"),
        (Directory, Relaxed, US, 27, 0o775, "remark"),
        (Directory, Relaxed, 0, 50, 0o775, "refuse"),
        (Directory, Relaxed, US, 1000, 0o777, "refuse"),
        (Directory, Relaxed, 1001, 1001, 0o755, "remark"),
        (Directory, Relaxed, US, 1000, 0o700, "good"),
    ] {
        let found = match verdict(kind, ownership, uid, gid, mode) {
            Good => "good",
            Remark(_) => "remark",
            Refuse(_) => "refuse",
        };
        assert_eq!(found, expected, "uid {uid} gid {gid} mode {mode:o} {ownership:?}");
    }
}

#[test]
fn a_real_file_from_a_temporary_folder() {
    let folder = tempfile::tempdir().unwrap();
    let library = std::env::current_exe().unwrap().with_file_name("libportreeve_standard.so");
    let path = folder.path().join("portreeve_standard.so");
    std::fs::copy(&library, &path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let demands = Demands { ownership: Ownership::Relaxed, sha256: None };
    let vetted = vet(&path, &demands).unwrap();
    assert_eq!(vetted.note.id, "standard");
    assert!(link::sealed::check(std::os::fd::AsFd::as_fd(&vetted.fd)).is_ok());
    assert_eq!(inspect(&path).unwrap().sha256, vetted.sha256);

    let pin = parse_sha256(&hex(&vetted.sha256)).unwrap();
    assert!(vet(&path, &Demands { sha256: Some(pin), ..demands }).is_ok());
    let other = vet(&path, &Demands { sha256: Some([7; 32]), ..demands }).unwrap_err();
    assert!(matches!(other, LoadError::Checksum { .. }), "{other}");

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o757)).unwrap();
    let error = vet(&path, &demands).unwrap_err().to_string();
    assert!(error.contains("portreeve_standard.so: is world-writable; chmod o-w"), "{error}");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let error = vet(&path, &demands).unwrap_err().to_string();
    assert!(error.contains("its directory") && error.contains("is world-writable"), "{error}");
}

#[test]
fn what_is_no_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("portreeve_text.so");
    std::fs::write(&text, "hello").unwrap();
    let program = std::env::current_exe().unwrap();
    for path in [&text, &program, folder.path()] {
        let error = inspect(path).unwrap_err();
        assert!(matches!(error, LoadError::NotAPlugin { .. }), "{error}");
    }
    assert!(matches!(inspect(&folder.path().join("absent")), Err(LoadError::Unreadable { .. })));
}

#[test]
fn pins() {
    assert_eq!(parse_sha256(&"0f".repeat(32)), Some([15; 32]));
    for bad in ["", &"0f".repeat(31), &"0g".repeat(32), &"+f".repeat(32)] {
        assert_eq!(parse_sha256(bad), None);
    }
}

//! Whom a child runs as. Names are looked up in `/etc/passwd` and `/etc/group`, where packages put system
//! users; a number is taken as it stands. No name service is asked: that would load libraries into a
//! process that still has every right.

use std::fs;
use std::io;

/// User, group and supplementary groups of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Ids {
    /// Looks `user` up, and `group` when it is not the user's own.
    pub fn lookup(user: &str, group: Option<&str>) -> Result<Ids, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error: io::Error| format!("{path}: {error}"));
        Self::find(&read("/etc/passwd")?, &read("/etc/group")?, user, group)
    }

    fn find(passwd: &str, group_file: &str, user: &str, group: Option<&str>) -> Result<Ids, String> {
        // name:password:uid:gid:…
        let row = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|row| {
            row.len() >= 4 && (row.first() == Some(&user) || (is_number(user) && row.get(2) == Some(&user)))
        });
        let number = |field: Option<&&str>| field.and_then(|field| field.parse::<u32>().ok());
        let (uid, own_gid) = match &row {
            Some(row) => (number(row.get(2)), number(row.get(3))),
            None => (user.parse().ok(), None),
        };
        let uid = uid.ok_or_else(|| format!("user {user}: not in /etc/passwd; create it or set `user`"))?;
        // name:password:gid:member,member
        let groups: Vec<Vec<&str>> = group_file.lines().map(|line| line.split(':').collect()).collect();
        let gid = match group {
            None => own_gid,
            Some(group) => groups
                .iter()
                .find(|row| row.first() == Some(&group))
                .and_then(|row| number(row.get(2)))
                .or_else(|| group.parse().ok()),
        };
        let gid = gid.ok_or_else(|| match group {
            Some(group) => format!("group {group}: not in /etc/group; create it or set `group`"),
            None => format!("user {user}: no primary group in /etc/passwd; set `group`"),
        })?;
        let name = row.as_ref().and_then(|row| row.first().copied()).unwrap_or(user);
        let groups = groups
            .iter()
            .filter(|row| row.get(3).is_some_and(|members| members.split(',').any(|member| member == name)))
            .filter_map(|row| number(row.get(2)))
            .collect();
        Ok(Ids { uid, gid, groups })
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbad line\nportreeve:x:990:980::/:/bin/false\n";
    const GROUP: &str = "root:x:0:\nmail:x:8:someone,portreeve\nportreeve:x:980:\nssl:x:70:portreeve\n";

    #[test]
    fn names_and_numbers() {
        let found = |user, group| Ids::find(PASSWD, GROUP, user, group);
        let portreeve = Ids { uid: 990, gid: 980, groups: vec![8, 70] };
        assert_eq!(found("portreeve", None), Ok(portreeve.clone()));
        assert_eq!(found("990", None), Ok(portreeve.clone()));
        assert_eq!(found("portreeve", Some("mail")), Ok(Ids { gid: 8, ..portreeve }));
        assert_eq!(found("1234", Some("5678")), Ok(Ids { uid: 1234, gid: 5678, groups: vec![] }));
        assert!(found("1234", None).unwrap_err().contains("set `group`"));
        assert!(found("nobody", None).unwrap_err().contains("user nobody"));
        assert!(found("root", Some("wheel")).unwrap_err().contains("group wheel"));
        assert!(found("", None).is_err());
        assert!(Ids::lookup("root", None).is_ok_and(|ids| ids.uid == 0));
    }
}

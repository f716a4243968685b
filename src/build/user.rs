//! Users and groups of an image, by its own `/etc/passwd` and `/etc/group`.

use serde::{Deserialize, Serialize};

/// Who a process of an image runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUser {
    /// Its id inside the image.
    pub uid: u32,
    /// Its group's.
    pub gid: u32,
    /// Its groups, `gid` among them.
    pub groups: Vec<u32>,
    /// `HOME`.
    pub home: String,
}

/// Why a user or group cannot be told.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    /// No such user.
    #[error("the image has no user `{0}` in /etc/passwd")]
    User(String),
    /// No such group.
    #[error("the image has no group `{0}` in /etc/group")]
    Group(String),
    /// The number that stands for no id.
    #[error("`{0}` is the number that means no id at all: the largest id is 4294967294")]
    NoId(String),
    /// An id that no process can have here.
    #[error(
        "`{text}` is the id {id}, and no process of this sandbox can have it, which has {} ids, from 0 to {max}: run as another user, \
         and write `USER {text}` after the last RUN. Files may belong to any id", u64::from(*max) + 1
    )]
    Id {
        /// As the Dockerfile says.
        text: String,
        /// The id.
        id: u32,
        /// The largest.
        max: u32,
    },
}

/// The two files of an image; empty where it has none.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) passwd: Vec<u8>,
    pub(crate) group: Vec<u8>,
    /// The largest id that a process can have.
    pub(crate) max_id: u32,
}

/// The largest id of this process's user namespace, as the text of `/proc/self/uid_map` says.
pub(crate) fn max_id(uid_map: &str) -> u32 {
    let end = |line: &str| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().ok());
        let (first, _, count) = (fields.next()??, fields.next()??, fields.next()??);
        (first + count).checked_sub(1)
    };
    let max = uid_map.lines().filter_map(end).max();
    max.and_then(|max| u32::try_from(max).ok()).unwrap_or(u32::MAX)
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Accounts {
    /// The user that `USER text` names: `name`, `uid`, `name:group`, `uid:gid`; nobody named is root.
    ///
    /// A number is that id, whoever is called so, and needs no line. With a group given there are no others. The
    /// group is always among the supplementary ones too: else a mode that shuts a group out would not shut this process out.
    pub(crate) fn user(&self, text: Option<&str>) -> Result<ImageUser, UserError> {
        let text = named(text);
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let line = self.passwd_line(user);
        let uid = match (&line, user.parse()) {
            (_, Ok(uid)) => uid,
            (Some(line), Err(_)) => line.uid,
            (None, Err(_)) => return Err(UserError::User(user.to_owned())),
        };
        let (gid, mut groups) = match group.filter(|group| !group.is_empty()) {
            Some(group) => (self.gid(group)?, Vec::new()),
            None => (
                line.as_ref().map_or(0, |line| line.gid),
                line.as_ref().map_or_else(Vec::new, |line| self.groups_of(line.name)),
            ),
        };
        if !groups.contains(&gid) {
            groups.push(gid);
        }
        check(text, [uid].iter().chain(&groups))?;
        let home = line.map_or("/", |line| line.home);
        let home = if home.is_empty() { "/" } else { home }.to_owned();
        Ok(ImageUser { uid, gid, groups, home })
    }

    /// The same, of a user as whom a process can run.
    pub(crate) fn process_user(&self, text: Option<&str>) -> Result<ImageUser, UserError> {
        let user = self.user(text)?;
        match [user.uid].iter().chain(&user.groups).find(|id| **id > self.max_id) {
            Some(id) => Err(UserError::Id { text: named(text).to_owned(), id: *id, max: self.max_id }),
            None => Ok(user),
        }
    }

    /// The owner that `--chown=text` names: a user alone gives its own group, a number alone the same number, `user:` group 0.
    pub(crate) fn owner(&self, text: &str) -> Result<(u32, u32), UserError> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let number: Option<u32> = user.parse().ok();
        let (uid, own_gid) = match (number, self.passwd_line(user)) {
            (Some(uid), _) => (uid, uid),
            (None, Some(line)) => (line.uid, line.gid),
            (None, None) if user.is_empty() && group.is_some() => (0, 0),
            (None, None) => return Err(UserError::User(user.to_owned())),
        };
        let gid = match group {
            None => own_gid,
            Some("") => 0,
            Some(group) => self.gid(group)?,
        };
        check(text, &[uid, gid])?;
        Ok((uid, gid))
    }

    fn gid(&self, group: &str) -> Result<u32, UserError> {
        if let Ok(gid) = group.parse() {
            return Ok(gid);
        }
        let by_name = lines(&self.group).find_map(|fields| match fields.as_slice() {
            [name, _, gid, ..] if *name == group => gid.parse().ok(),
            _ => None,
        });
        by_name.ok_or_else(|| UserError::Group(group.to_owned()))
    }

    fn passwd_line(&self, user: &str) -> Option<PasswdLine<'_>> {
        let number: Option<u32> = user.parse().ok();
        let mut parsed = lines(&self.passwd).filter_map(|fields| match fields.as_slice() {
            [name, _, uid, gid, rest @ ..] => Some(PasswdLine {
                name,
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: rest.get(1).copied().unwrap_or("/"),
            }),
            _ => None,
        });
        parsed.find(|line| number.map_or(line.name == user, |uid| line.uid == uid))
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let is_member = |members: &str| members.split(',').any(|member| member == user);
        lines(&self.group)
            .filter_map(|fields| match fields.as_slice() {
                [_, _, gid, members, ..] if is_member(members) => gid.parse().ok(),
                _ => None,
            })
            .collect()
    }
}

/// What a change of owner takes for "as it is" is nobody's id.
fn check<'i>(text: &str, ids: impl IntoIterator<Item = &'i u32>) -> Result<(), UserError> {
    if ids.into_iter().any(|id| *id == u32::MAX) { Err(UserError::NoId(text.to_owned())) } else { Ok(()) }
}

/// Nobody named is root.
fn named(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("0")
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    file.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.trim().split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd:
                b"root:x:0:0:root:/root:/bin/sh\n\xff:x:9:9::/:/\napp:x:1000:1001:App:/home/app:/bin/sh\n"
                    .to_vec(),
            group: b"root:x:0:\nstaff:x:50:app,other\napp:x:1001:\nadm:x:4:app".to_vec(),
            max_id: 65_535,
        }
    }

    fn user(text: &str) -> Result<(u32, u32, Vec<u32>, String), UserError> {
        accounts().user(Some(text)).map(|user| (user.uid, user.gid, user.groups, user.home))
    }

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let app = (1000, 1001, vec![50, 4, 1001], "/home/app".to_owned());
        assert_eq!(user("app"), Ok(app.clone()));
        assert_eq!(user("1000"), Ok(app));
        assert_eq!(user(""), Ok((0, 0, vec![0], "/root".to_owned())));
        assert_eq!(user("77"), Ok((77, 0, vec![0], "/".to_owned())));
        assert_eq!(user("app:staff"), Ok((1000, 50, vec![50], "/home/app".to_owned())));
        assert_eq!(user("1000:7"), Ok((1000, 7, vec![7], "/home/app".to_owned())));
    }

    #[test]
    fn a_number_is_an_id_even_if_somebody_is_called_so() {
        let accounts = Accounts {
            passwd: b"7:x:1000:1001::/seven:/bin/sh\nseven:x:7:8::/:/bin/sh".to_vec(),
            group: b"7:x:1002:".to_vec(),
            max_id: u32::MAX,
        };
        let user = accounts.user(Some("7:7")).unwrap();
        assert_eq!((user.uid, user.gid), (7, 7));
        assert_eq!(accounts.user(Some("7")).unwrap().gid, 8);
        assert_eq!(accounts.owner("7:7"), Ok((7, 7)));
    }

    #[test]
    fn an_id_that_the_sandbox_does_not_have_is_named() {
        let of = |text: &str| accounts().process_user(Some(text)).map(|user| (user.uid, user.gid));
        let id = |text: &str, id| Err(UserError::Id { text: text.to_owned(), id, max: 65_535 });
        assert_eq!((of("65536"), of("app:70000")), (id("65536", 65_536), id("app:70000", 70_000)));
        assert_eq!(of("65535:65535"), Ok((65_535, 65_535)));
        let told = of("70000").unwrap_err().to_string();
        assert!(told.contains("has 65536 ids, from 0 to 65535: run as another user"), "{told}");
        // Files may be anybody's, but not of the number that changes no owner.
        for none in ["4294967295", "0:4294967295"] {
            assert_eq!(accounts().owner(none), Err(UserError::NoId(none.to_owned())));
            assert_eq!(accounts().user(Some(none)).unwrap_err(), UserError::NoId(none.to_owned()));
        }
        assert_eq!(accounts().owner("70000"), Ok((70_000, 70_000)));
        assert_eq!(user("70000").unwrap().0, 70_000);
        assert_eq!(max_id("         0     100000      65536\n"), 65_535);
        assert_eq!(max_id("0 1000 1\n1 100000 65535\n"), 65_535);
        assert_eq!(max_id("         0          0 4294967295\n"), u32::MAX - 1);
        assert_eq!(max_id(""), u32::MAX);
    }

    #[test]
    fn names_that_the_image_does_not_have_are_errors() {
        assert_eq!(user("nobody"), Err(UserError::User("nobody".to_owned())));
        assert_eq!(user("app:wheel"), Err(UserError::Group("wheel".to_owned())));
        let nobody = Accounts { passwd: Vec::new(), group: Vec::new(), max_id: 0 };
        assert_eq!(nobody.user(None).map(|user| (user.uid, user.home)), Ok((0, "/".to_owned())));
    }

    #[test]
    fn an_owner_without_a_group_has_the_users_group_or_the_same_number() {
        assert_eq!(accounts().owner("app"), Ok((1000, 1001)));
        assert_eq!(accounts().owner("1000"), Ok((1000, 1000)));
        assert_eq!(accounts().owner("app:"), Ok((1000, 0)));
        assert_eq!(accounts().owner(":staff"), Ok((0, 50)));
        assert_eq!(accounts().owner("2:3"), Ok((2, 3)));
    }
}

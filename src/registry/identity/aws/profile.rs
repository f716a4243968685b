//! The files of Amazon's programs: `~/.aws/credentials` and `~/.aws/config`.
//!
//! Keys and web identities in them are used. Other kinds of profile (a login in a browser, a program that is run, a role by
//! way of another profile) are those of a person at a desk, who can export keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Found, Keys, WebIdentity};
use crate::model::Secret;
use crate::registry::identity::variables::read_if_there;
use crate::registry::identity::{IdentityError, Variables};

/// What a profile is.
pub(super) enum Profile {
    Keys(Found),
    WebIdentity(WebIdentity),
}

/// What says that a profile is of another kind.
const OTHERS: [&str; 5] =
    ["sso_session", "sso_start_url", "credential_process", "source_profile", "login_session"];

type Entries = BTreeMap<String, Secret<String>>;

/// The profile that is chosen, or the default one; `None` if there is none.
pub(super) fn read(variables: &Variables) -> Result<Option<Profile>, IdentityError> {
    let name = name(variables);
    let entries = entries(variables, &name)?;
    let text = |key: &str| entries.get(key).map(|value| value.reveal().clone());
    let origin = format!("the profile `{name}` of AWS");
    let keys = (text("aws_access_key_id"), entries.get("aws_secret_access_key").cloned());
    if let (Some(access_key), Some(secret_key)) = keys {
        let session_token = entries.get("aws_session_token").cloned();
        let keys = Keys { access_key, secret_key, session_token, valid: None };
        return Ok(Some(Profile::Keys(Found { keys, origin })));
    }
    if let (Some(role), Some(token_file)) = (text("role_arn"), text("web_identity_token_file")) {
        let session = text("role_session_name");
        return Ok(Some(Profile::WebIdentity(WebIdentity { role, session, token_file })));
    }
    if let Some(kind) = OTHERS.iter().find(|kind| entries.contains_key(**kind)) {
        return Err(IdentityError::Unusable {
            what: origin,
            problem: format!(
                "`{kind}` is not done; give its keys: `eval \"$(aws configure export-credentials --profile {name} --format env)\"`"
            ),
        });
    }
    if variables.get("AWS_PROFILE").is_some() && entries.is_empty() {
        let problem = "neither `~/.aws/credentials` nor `~/.aws/config` has it".to_owned();
        return Err(IdentityError::Unusable { what: origin, problem });
    }
    Ok(None)
}

/// The region of the profile.
pub(super) fn region(variables: &Variables) -> Option<String> {
    let entries = entries(variables, &name(variables)).ok()?;
    entries.get("region").map(|region| region.reveal().clone())
}

fn name(variables: &Variables) -> String {
    variables.get("AWS_PROFILE").unwrap_or_else(|| "default".to_owned())
}

/// What both files say of a profile; that with the secrets comes before the other.
fn entries(variables: &Variables, name: &str) -> Result<Entries, IdentityError> {
    let file = |variable: &str, usual: &str| {
        variables.get(variable).map(PathBuf::from).or_else(|| variables.in_home(usual))
    };
    let files = [
        (file("AWS_CONFIG_FILE", ".aws/config"), "`$AWS_CONFIG_FILE`", true),
        (file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"), "`$AWS_SHARED_CREDENTIALS_FILE`", false),
    ];
    let mut entries = Entries::new();
    for (path, named_by, is_config) in files {
        if let Some(path) = path
            && let Some(text) = read_if_there(&path, named_by)?
        {
            let is_it = |section: &str| {
                if is_config && name != "default" {
                    section.strip_prefix("profile").is_some_and(|rest| rest.trim() == name)
                } else {
                    section == name
                }
            };
            entries.extend(section(text.reveal(), is_it));
        }
    }
    Ok(entries)
}

/// The entries of a section of an INI file; what is indented belongs to the entry above it and is not looked at.
fn section(text: &str, is_it: impl Fn(&str) -> bool) -> Entries {
    let (mut entries, mut inside) = (Entries::new(), false);
    for line in text.lines() {
        if let Some(section) = line.trim().strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            inside = is_it(section.trim());
        } else if inside
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((key, value)) = line.split_once('=')
            && !value.trim().is_empty()
        {
            entries.insert(key.trim().to_ascii_lowercase(), Secret::new(value.trim().to_owned()));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn home(credentials: &str, config: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".aws")).unwrap();
        fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        fs::write(home.path().join(".aws/config"), config).unwrap();
        home
    }

    #[test]
    fn keys_are_those_of_the_profile_that_is_chosen() {
        let home = home(
            "[default]\naws_access_key_id = A\naws_secret_access_key = hunter2\n# note\n[ci]\naws_access_key_id=B\naws_secret_access_key=s\n",
            "[default]\nregion = eu-west-1\ns3 =\n  aws_access_key_id = nested\n[profile ci]\nregion=us-east-1\n",
        );
        let path = home.path().to_str().unwrap();
        for (given, expected, where_) in [
            (&[("HOME", path)][..], "A", "eu-west-1"),
            (&[("HOME", path), ("AWS_PROFILE", "ci")][..], "B", "us-east-1"),
        ] {
            let variables = Variables::of(given);
            let Some(Profile::Keys(found)) = read(&variables).unwrap() else { panic!() };
            assert_eq!(
                (found.keys.access_key.as_str(), region(&variables).as_deref()),
                (expected, Some(where_))
            );
            assert!(!format!("{found:?}").contains("hunter2"));
        }
        let missing = Variables::of(&[("HOME", path), ("AWS_PROFILE", "other")]);
        assert!(matches!(read(&missing), Err(IdentityError::Unusable { .. })));
    }

    #[test]
    fn a_profile_of_a_person_says_how_keys_are_had() {
        let home = home("", "[default]\nsso_session = work\n");
        let variables = Variables::of(&[("HOME", home.path().to_str().unwrap())]);
        let Err(error) = read(&variables) else { panic!() };
        assert!(error.to_string().contains("aws configure export-credentials --profile default"), "{error}");
        assert!(read(&Variables::of(&[("HOME", "/nonexistent")])).unwrap().is_none());
    }
}

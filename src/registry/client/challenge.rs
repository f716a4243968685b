//! `WWW-Authenticate`, as registries send it (RFC 9110 §11.6.1 and the distribution token documentation).

/// What a registry wants to see before it does what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from the server at `realm`.
    Bearer {
        /// Where tokens are.
        realm: String,
        /// What the token is for.
        service: Option<String>,
        /// What it should allow.
        scope: Option<String>,
    },
}

/// The challenge to answer, of all that the headers hold: `Bearer` before `Basic`.
pub(super) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<Challenge> = headers.flat_map(parse).collect();
    let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(all.first()).cloned()
}

fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start();
    while let Some((scheme, after)) = token(rest) {
        let mut parameters = Vec::new();
        rest = after.trim_start();
        while let Some((name, value, after)) = parameter(rest) {
            parameters.push((name.to_ascii_lowercase(), value));
            rest = after.trim_start_matches([',', ' ', '\t']);
        }
        let mut take = |name: &str| {
            let at = parameters.iter().position(|(known, _)| known == name)?;
            Some(parameters.swap_remove(at).1)
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = take("realm")
        {
            challenges.push(Challenge::Bearer { realm, service: take("service"), scope: take("scope") });
        }
        rest = rest.trim_start_matches([',', ' ', '\t']);
    }
    challenges
}

fn token(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)));
    let (token, rest) = text.split_at(end.unwrap_or(text.len()));
    (!token.is_empty()).then_some((token, rest))
}

/// `name=value` or `name="quoted \" value"`.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = token(text)?;
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, rest) = token(rest)?;
        return Some((name, value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((name, value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_challenge_is_read_with_commas_in_its_scope() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.docker.io/token".to_owned(),
            service: Some("registry.docker.io".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        };
        assert_eq!(choose([header].into_iter()), Some(expected.clone()));
        let both = format!("Basic realm=\"x\", {header}");
        assert_eq!(choose([both.as_str()].into_iter()), Some(expected.clone()));
        assert_eq!(choose(["Basic realm=x", header].into_iter()), Some(expected));
    }

    #[test]
    fn unknown_and_broken_challenges_are_passed_over() {
        assert_eq!(choose(["Negotiate, basic realm=\"a\\\"b\""].into_iter()), Some(Challenge::Basic));
        for header in
            ["", "Bearer", "Bearer realm", "Bearer realm=\"", ",,,", "Bearer service=\"x\"", "=", "\u{1F600}"]
        {
            assert_eq!(choose([header].into_iter()), None, "{header}");
        }
    }
}

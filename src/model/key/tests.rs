use super::*;

const ED25519: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAar54PFdBzQqRcHf7funiUt/ixDeh4aBh6sEYz8yJzt ed25519-256 me@box";
const P256: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBH9UxPasSVRa58CNQezyeQUnJSZnV+YwhqWXlo3cn8mtgoECnC15GVnK7qgiAzC1J/CUBOsbmVf0wr5iJoiqWZs=";
const P384: &str = "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBDhxT3jOuwUjrji8H3FNSflUfUaSIP4uNKTyHTmp6maHagCOqokPKsah72oMptikRvJlTkTnKQmqAHWuK5DpumSX7T0c7foS41xHRJxaLaNyUBJYJ9JZjwg9gVAwDBgCUA==";
const P521: &str = "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAA66HsIwXWu3bYCijMlc+ldWsMJU++R5N870VjS9zl0iw48Un0c+ECC9AcTraGM6wwoxSNBVHgrd9tJtfZfeq77IQAd0eRZKqfF73gC1D71VCEWaNBZNzGZa3zE0EbKL/WWAH92DWFcRPXQInu2c2IX+dDA5jtiYUWQm/V8pYOLm8jx2w==";
const RSA_1024: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDRu3qt76qnI1Nscne1KUqZNPsGHLJfYVo3VKnbvUUXbPf6oOkjIn5xW2ETDaidFJCMxU+eSb3Or1wIEgbjv9caLX+KFY/MQlDp/5tc7tgg2DoVd3/BEs2tqHmmpnVIjq6MR9K8oNWFd6b6OyD5PoHLwDFmit0ahgZijJNg3+wzQw== rsa-1024";
const RSA_2048: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDMCSXdEDqenqKsCpNbjNGaaYpbujOU6YiraeIIbb0Baadp2gea0RRqWFK+toqxNP/OCaK728qjpg593n/g7iPU0xol4/PQeIqTqhWOi7dCC42qqqwwXOX9klAv9neuxi/6Kc0iiAdfwA423n9AoRIg4n6wOaQoO/R4NU3IYAK+Y43mGxBpcdEcn/V/kyWw85S8o+0aGmXcoXZ4ggSH/WCZFUb6wedK8Mow6csvO5EMwZ5zHNpCe5RWw69lmWmGfG8Hde1twwjH/ol6vOEz5mmwu+tvtP63FxHerO9VzwqM1FopzXWUA5xdtDc+dVX9NXJBHLdOFqCVcQPnietD7wMh rsa-2048";

fn string(blob: &mut Vec<u8>, value: &[u8]) {
    blob.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
    blob.extend(value);
}

fn line(parts: &[&[u8]]) -> String {
    let mut blob = Vec::new();
    for part in parts {
        string(&mut blob, part);
    }
    format!("{} {}", std::str::from_utf8(parts[0]).unwrap(), STANDARD.encode(blob))
}

#[test]
fn every_accepted_type_is_read_with_the_fingerprint_that_ssh_keygen_shows() {
    for (text, fingerprint) in [
        (ED25519, "SHA256:3yOxlaUMe7Qn6JxwA8gN2fBfRqPt9o8MKCLMDCCsTsw"),
        (P256, "SHA256:reqPcxk4HfopLyY2Z84dT0eaS/Ra0WtZCJNNFvhKjp4"),
        (P384, "SHA256:0TEWWLbtXOFAa7GALSQMbjCJlnU0pIhLT++W6z3L/zE"),
        (P521, "SHA256:moYNOy0gbYiTzSRcChWSIBLzlYo7JRIdTWz34ddpBMA"),
        (RSA_2048, "SHA256:Oy7fLwtR+mvFML5FfRLQQEiy6CVcEYRGw0LEJkqOW08"),
    ] {
        let key = PublicKey::parse_file(&format!("# my key\n\n  {text}\r\n")).unwrap();
        assert_eq!(key.to_string(), text);
        assert_eq!(key.fingerprint().to_string(), fingerprint);
        assert_eq!(fingerprint.parse(), Ok(key.fingerprint()));
    }
    assert_eq!(PublicKey::parse_file(ED25519).unwrap().comment(), "ed25519-256 me@box");
}

#[test]
fn keys_of_security_tokens_are_read() {
    let mut point = vec![4];
    point.extend([7; 64]);
    for text in [
        line(&[b"sk-ssh-ed25519@openssh.com", &[7; 32], b"ssh:"]),
        line(&[b"sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", &point, b"ssh:"]),
    ] {
        assert_eq!(PublicKey::parse_file(&text).unwrap().to_string(), text);
    }
}

#[test]
fn keys_are_equal_by_their_blob_and_survive_json() {
    let key: PublicKey = ED25519.parse().unwrap();
    assert_eq!(key, key.clone().with_comment("another\u{1b}[31m name"));
    assert_eq!(key.clone().with_comment("another\u{1b}[31m name").comment(), "another[31m name");
    let json = serde_json::to_string(&key).unwrap();
    assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
    assert_eq!(PublicKey::from_blob(&STANDARD.decode(key.body()).unwrap()).unwrap(), key);
}

#[test]
fn what_is_no_single_public_key_is_refused_with_its_reason() {
    use KeyError as E;
    let (kind, body) = ED25519.split_once(' ').unwrap();
    let body = body.split_once(' ').unwrap().0;
    for (text, error) in [
        (String::new(), E::Empty),
        ("# nothing\n\n".into(), E::Empty),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----".into(), E::Private),
        ("-----BEGIN RSA PRIVATE KEY-----\nb3Bl".into(), E::Private),
        ("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA".into(), E::OtherFormat),
        (format!("{ED25519}\n{P256}\n"), E::Several(2)),
        (format!("{ED25519} {P256}\n"), E::Several(2)),
        (format!("{ED25519}\n{RSA_2048}\n{P256}\n"), E::Several(3)),
        (format!("{ED25519}\nhello\n"), E::Trailing("hello".into())),
        (
            format!("{kind} {}\n{}", &body[..20], &body[20..]),
            E::Trailing(body[20..].chars().take(40).collect()),
        ),
        (format!("command=\"rm -rf /\" {ED25519}"), E::Options("command".into())),
        (format!("no-pty,from=\"10.*\" {ED25519}"), E::Options("no-pty".into())),
        (format!("restrict {ED25519}"), E::Options("restrict".into())),
        ("ssh-dss AAAAB3NzaC1kc3MAAACB me".into(), E::RefusedType("ssh-dss".into())),
        (
            "ssh-ed25519-cert-v01@openssh.com AAAA".into(),
            E::RefusedType("ssh-ed25519-cert-v01@openssh.com".into()),
        ),
        ("hello world".into(), E::UnknownType("hello".into())),
        (body.into(), E::UnknownType(body.chars().take(40).collect())),
        (kind.into(), E::Body("there is nothing after the type")),
        (format!("{kind} !!!!"), E::Body("it is not base64")),
        (format!("{kind} {}", &body[..body.len() - 4]), E::Body("it ends too early")),
        (RSA_1024.into(), E::RsaBits(1024)),
        (format!("ssh-rsa {body}"), E::TypeMismatch { said: "ssh-rsa".into(), found: kind.into() }),
        (line(&[b"ssh-ed25519", &[7; 32], b"more"]), E::Body("there is more in it than a key")),
        (line(&[b"ssh-ed25519", &[7; 31]]), E::Body("a part of it has the wrong length")),
        (
            line(&[b"ecdsa-sha2-nistp256", b"nistp384", &[4; 65]]),
            E::Body("its curve is not the one of its type"),
        ),
        ("x".repeat(MAX_TEXT_BYTES + 1), E::TooLong),
    ] {
        assert_eq!(PublicKey::parse_file(&text).unwrap_err(), error, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn no_blob_and_no_text_makes_the_reader_panic(blob: Vec<u8>, text: String) {
        let mut framed = Vec::new();
        string(&mut framed, b"ssh-rsa");
        framed.extend(&blob);
        drop((PublicKey::from_blob(&blob), PublicKey::from_blob(&framed), PublicKey::parse_file(&text)));
    }
}

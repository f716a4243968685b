//! One TLS stack: what `deny.toml` bans is not in `Cargo.lock`, also where `cargo deny` is not installed.

#[test]
fn there_is_one_tls_stack_and_it_is_rustls_with_ring() {
    let lock = include_str!("../../Cargo.lock");
    let has = |name: &str| lock.contains(&format!("name = \"{name}\"\n"));
    for banned in ["openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys", "boring-sys"] {
        assert!(!has(banned), "{banned} is a second TLS stack: choose features that do without");
    }
    assert!(has("rustls") && has("ring"));
}

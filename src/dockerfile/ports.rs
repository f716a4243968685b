//! The ports of EXPOSE: `80`, `53/udp`, `8000-8002`, and the forms with a host's address that older files have.

/// Why a word is no port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is not a port such as `80`, `53/udp` or `8000-8010/tcp`: {reason}")]
pub struct PortError {
    /// The word.
    pub word: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// The ports that an expanded word of EXPOSE names, as the image config spells them: `80/tcp`.
pub fn exposed_ports(word: &str) -> Result<Vec<String>, PortError> {
    let fail = |reason| PortError { word: word.to_owned(), reason };
    // `[ip:]host:container/protocol`: only the last part says what the image listens on.
    let mut colons = word.rsplitn(3, ':');
    let container = colons.next().unwrap_or_default();
    let host = colons.next().filter(|host| !host.is_empty());
    let address = colons.next().filter(|address| !address.is_empty());
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => "tcp",
        "udp" => "udp",
        "sctp" => "sctp",
        _ => return Err(fail("the protocol is tcp, udp or sctp")),
    };
    let (first, last) = range(ports).map_err(fail)?;
    if let Some(host) = host {
        let (host_first, host_last) = range(host).map_err(fail)?;
        if first != last && last - first != host_last - host_first {
            return Err(fail("the two ranges differ in length"));
        }
    }
    let address = address.map(|address| address.trim_start_matches('[').trim_end_matches(']'));
    if address.is_some_and(|address| address.parse::<std::net::IpAddr>().is_err()) {
        return Err(fail("the part before the ports is no IP address"));
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn range(text: &str) -> Result<(u16, u16), &'static str> {
    let port = |text: &str| text.parse::<u16>().map_err(|_| "a port is a number from 0 to 65535");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first <= last { Ok((first, last)) } else { Err("the range ends before it begins") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_protocol_and_ranges_are_spelled_out() {
        assert_eq!(exposed_ports("80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed_ports("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(exposed_ports("8000-8002").unwrap(), ["8000/tcp", "8001/tcp", "8002/tcp"]);
        assert_eq!(exposed_ports("7/sctp").unwrap(), ["7/sctp"]);
    }

    #[test]
    fn the_hosts_part_of_a_port_is_checked_and_dropped() {
        assert_eq!(exposed_ports("127.0.0.1:8080:80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed_ports("[::1]::80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed_ports("8080:80/udp").unwrap(), ["80/udp"]);
        assert!(exposed_ports("host:8080:80").is_err());
        assert!(exposed_ports("1-3:80-81").is_err());
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for word in ["", "x", "65536", "80/icmp", "9-8", "-1", "80-", "/tcp"] {
            assert!(exposed_ports(word).is_err(), "{word}");
        }
    }
}

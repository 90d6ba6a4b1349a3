//! Where a webhook may go: names are resolved once, every address is checked, and the checked address is the one that is connected to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address that a host is by itself, without asking anybody: written as usual, or in a way that resolvers take for one of version
/// 4 as well (`inet_aton`: `127.1`, `2130706433`, `0x7f.1`).
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.parse().ok().or_else(|| short_v4(host).map(IpAddr::V4))
}

/// Whether a name leads to this machine whoever is asked (RFC 6761).
pub(crate) fn is_local_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// One to four numbers, of which the last fills all bytes that the others leave.
fn short_v4(host: &str) -> Option<Ipv4Addr> {
    let numbers: Vec<u32> = host.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = numbers.split_last()?;
    if first.len() > 3 || first.iter().any(|byte| *byte > 255) {
        return None;
    }
    let last_bits = 32 - 8 * first.len();
    let last = u64::from(*last);
    if last >> last_bits != 0 {
        return None;
    }
    let high = first.iter().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    u32::try_from((high << last_bits) | last).ok().map(Ipv4Addr::from)
}

/// A number as C writes it: decimal, octal or hexadecimal.
fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    // A sign would be taken as well.
    let is_digits = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    u32::from_str_radix(digits, radix).ok().filter(|_| is_digits)
}

/// Whether an address is one of the public internet (the registries of IANA for special purposes, 2024).
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || a == 0
        // Shared by providers' customers; protocol assignments; benchmarking.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        // Multicast, reserved, broadcast.
        || a >= 224)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    let [high, low] = [s[6], s[7]].map(u16::to_be_bytes);
    let last = Ipv4Addr::new(high[0], high[1], low[0], low[1]);
    // Addresses that carry one of version 4 are as public as that one.
    if address.to_ipv4_mapped().is_some() || s[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        return is_public_v4(last);
    }
    // Of what is assigned to be reached from everywhere (2000::/3), all but 6to4, protocol assignments and documentation.
    let is_global = s[0] & 0xe000 == 0x2000;
    let is_special = s[0] == 0x2002
        || (s[0] == 0x2001 && (s[1] < 0x200 || s[1] == 0xdb8))
        || (s[0] == 0x3fff && s[1] < 0x1000);
    is_global && !is_special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_addresses_in_disguise_are_read_as_resolvers_read_them() {
        for (host, address) in [
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("127.1", "127.0.0.1"),
            ("2130706433", "127.0.0.1"),
            ("0x7f.1", "127.0.0.1"),
            ("0X7F000001", "127.0.0.1"),
            ("0177.0.0.01", "127.0.0.1"),
            ("10.1.513", "10.1.2.1"),
            ("0", "0.0.0.0"),
            ("134744072", "8.8.8.8"),
            ("::1", "::1"),
        ] {
            assert_eq!(literal(host), Some(address.parse().unwrap()), "{host}");
        }
        for host in [
            "",
            ".",
            "example.org",
            "1.2.3.4.5",
            "256.1",
            "1.16777216",
            "4294967296",
            "-1",
            "+1",
            "08",
            "0xg",
            "1..2",
        ] {
            assert_eq!(literal(host), None, "{host}");
        }
        for (host, is_local) in [
            ("localhost", true),
            ("LocalHost.", true),
            ("a.localhost", true),
            ("localhost.example.org", false),
            ("mylocalhost", false),
        ] {
            assert_eq!(is_local_name(host), is_local, "{host}");
        }
    }

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        let public = |text: &str| is_public(text.parse().unwrap());
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert!(public(address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "127.8.8.8",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::1",
            "100::1",
        ] {
            assert!(!public(address), "{address}");
        }
    }
}

//! Socket addresses as a guest writes and reads them (`struct sockaddr_*`; `ip(7)`, `ipv6(7)`, `unix(7)`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use linux_raw_sys::net::{AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC};

use super::Errno;

/// Address families that sockets of ours have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// AF_INET.
    Inet,
    /// AF_INET6.
    Inet6,
    /// AF_UNIX.
    Unix,
}

impl Family {
    /// The AF_* number.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Inet => AF_INET as u16,
            Self::Inet6 => AF_INET6 as u16,
            Self::Unix => AF_UNIX as u16,
        }
    }
}

/// Socket types that sockets of ours have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SOCK_STREAM.
    Stream,
    /// SOCK_DGRAM.
    Datagram,
    /// SOCK_SEQPACKET (unix only).
    Packet,
}

/// An address; the family belongs to the socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Address {
    /// No name (unix), or no address yet.
    #[default]
    Unnamed,
    /// IPv4 or IPv6, and a port.
    Inet(SocketAddr),
    /// A unix socket's path as the guest named it; with a leading zero byte an abstract name.
    Unix(Vec<u8>),
}

/// What a guest passed as an address: AF_UNSPEC dissolves an association (`connect(2)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// AF_UNSPEC.
    Unspecified,
    /// An address of a family.
    Address(Family, Address),
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Errno> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Errno::INVAL)
}

impl Named {
    /// Take an address apart.
    ///
    /// # Errors
    ///
    /// EINVAL where it is too short for its family, EAFNOSUPPORT for another family.
    pub fn decode(bytes: &[u8]) -> Result<Self, Errno> {
        let family = u32::from(u16::from_ne_bytes(array(bytes, 0)?));
        match family {
            AF_UNSPEC => Ok(Self::Unspecified),
            AF_INET => {
                array::<16>(bytes, 0)?;
                let ip = Ipv4Addr::from(array::<4>(bytes, 4)?);
                let port = u16::from_be_bytes(array(bytes, 2)?);
                Ok(Self::Address(Family::Inet, Address::Inet(SocketAddrV4::new(ip, port).into())))
            }
            AF_INET6 => {
                let ip = Ipv6Addr::from(array::<16>(bytes, 8)?);
                let port = u16::from_be_bytes(array(bytes, 2)?);
                let flow = u32::from_be_bytes(array(bytes, 4)?);
                // RFC 2133's form, without a scope, is still accepted.
                let scope = array(bytes, 24).map_or(0, u32::from_ne_bytes);
                Ok(Self::Address(Family::Inet6, Address::Inet(SocketAddrV6::new(ip, port, flow, scope).into())))
            }
            AF_UNIX => Ok(Self::Address(Family::Unix, unix_name(bytes.get(2..).unwrap_or_default())?)),
            _ => Err(Errno::AFNOSUPPORT),
        }
    }
}

fn unix_name(name: &[u8]) -> Result<Address, Errno> {
    match name.first() {
        None => Ok(Address::Unnamed),
        Some(_) if name.len() > 108 => Err(Errno::INVAL),
        Some(0) => Ok(Address::Unix(name.to_vec())),
        Some(_) => {
            let end = memchr::memchr(0, name).unwrap_or(name.len());
            Ok(Address::Unix(name.get(..end).unwrap_or_default().to_vec()))
        }
    }
}

impl Address {
    /// The bytes of the `struct sockaddr` that a socket of this family shows.
    #[must_use]
    pub fn encode(&self, family: Family) -> Vec<u8> {
        // All of an IPv6 address, so that the list does not grow piece by piece.
        let mut bytes = Vec::with_capacity(28);
        bytes.extend(family.number().to_ne_bytes());
        match (family, self) {
            (Family::Unix, Self::Unix(name)) => {
                bytes.extend(name);
                if name.first() != Some(&0) {
                    bytes.push(0);
                }
            }
            (Family::Unix, _) => {}
            (Family::Inet, address) => {
                let address = address.as_v4();
                bytes.extend(address.port().to_be_bytes());
                bytes.extend(address.ip().octets());
                bytes.extend([0; 8]);
            }
            (Family::Inet6, address) => {
                let address = address.as_v6();
                bytes.extend(address.port().to_be_bytes());
                bytes.extend(address.flowinfo().to_be_bytes());
                bytes.extend(address.ip().octets());
                bytes.extend(address.scope_id().to_ne_bytes());
            }
        }
        bytes
    }

    /// Any address and any port.
    #[must_use]
    pub const fn any(family: Family) -> Self {
        match family {
            Family::Inet => Self::Inet(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)),
            Family::Inet6 => Self::Inet(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)),
            Family::Unix => Self::Unnamed,
        }
    }

    /// The same with another port.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        match self {
            Self::Inet(address) => Self::Inet(SocketAddr::new(address.ip(), port)),
            other => other.clone(),
        }
    }

    /// A destination with an unspecified address means this machine: say so, because grants go by what is reached.
    #[must_use]
    pub fn on_this_machine(&self) -> Self {
        match self {
            Self::Inet(address) if address.ip().to_canonical().is_unspecified() => {
                let ip = match address.ip() {
                    IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
                    IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
                };
                Self::Inet(SocketAddr::new(ip, address.port()))
            }
            other => other.clone(),
        }
    }

    /// As a socket of this family sees it: IPv4 clients of an IPv6 socket have IPv4-mapped addresses.
    #[must_use]
    pub fn seen_by(&self, family: Family) -> Self {
        match (family, self) {
            (Family::Inet, Self::Inet(_)) => Self::Inet(self.as_v4().into()),
            (Family::Inet6, Self::Inet(_)) => Self::Inet(self.as_v6().into()),
            _ => self.clone(),
        }
    }

    /// IP address and port with IPv4-mapped addresses as IPv4, which is what grants are about.
    #[must_use]
    pub fn canonical(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(SocketAddr::new(address.ip().to_canonical(), address.port())),
            _ => None,
        }
    }

    fn as_v4(&self) -> SocketAddrV4 {
        match self.canonical() {
            Some(SocketAddr::V4(address)) => address,
            Some(SocketAddr::V6(address)) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, address.port()),
            None => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
        }
    }

    fn as_v6(&self) -> SocketAddrV6 {
        match self {
            Self::Inet(SocketAddr::V6(address)) => *address,
            Self::Inet(SocketAddr::V4(address)) => SocketAddrV6::new(address.ip().to_ipv6_mapped(), address.port(), 0, 0),
            _ => SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0),
        }
    }

    /// The address that a connection to `target` finds at a socket bound to this one: never an unspecified one.
    #[must_use]
    pub fn as_reached(&self, target: &Self) -> Self {
        match (self, target) {
            (Self::Inet(bound), Self::Inet(target)) if bound.ip().is_unspecified() => {
                let ip = match (target.ip().is_unspecified(), bound.is_ipv6()) {
                    (false, _) => target.ip(),
                    (true, false) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    (true, true) => IpAddr::V6(Ipv6Addr::LOCALHOST),
                };
                Self::Inet(SocketAddr::new(ip, bound.port()))
            }
            _ => self.clone(),
        }
    }

    /// Whether a connection to `target` reaches a socket bound to this address.
    #[must_use]
    pub fn accepts(&self, target: &Self) -> bool {
        match (self, target) {
            (Self::Inet(_), Self::Inet(_)) => match (self.canonical(), target.canonical()) {
                (Some(bound), Some(target)) => bound.port() == target.port() && reaches(bound.ip(), target.ip()),
                _ => false,
            },
            (Self::Unix(bound), Self::Unix(target)) => bound == target,
            _ => false,
        }
    }
}

/// Whether a packet to `target`, sent on this machine, arrives at a socket bound to `bound`.
fn reaches(bound: IpAddr, target: IpAddr) -> bool {
    let local = target.is_loopback() || target.is_unspecified();
    bound == target
        || (bound.is_unspecified() && local && (bound.is_ipv6() || target.is_ipv4()))
        || (target.is_unspecified() && bound.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(text: &str) -> Address {
        Address::Inet(text.parse().expect("address"))
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for (family, address) in [
            (Family::Inet, inet("10.1.2.3:80")),
            (Family::Inet6, Address::Inet(SocketAddrV6::new("fe80::1".parse().expect("ip"), 443, 7, 3).into())),
            (Family::Unix, Address::Unix(b"/run/x".to_vec())),
            (Family::Unix, Address::Unix(b"\0abstract".to_vec())),
            (Family::Unix, Address::Unnamed),
        ] {
            assert_eq!(Named::decode(&address.encode(family)), Ok(Named::Address(family, address)));
        }
    }

    #[test]
    fn short_and_foreign_addresses_are_refused() {
        assert_eq!(Named::decode(&[2]), Err(Errno::INVAL));
        assert_eq!(Named::decode(&[2, 0, 0, 80, 1, 2, 3, 4]), Err(Errno::INVAL));
        assert_eq!(Named::decode(&[16, 0, 0, 0]), Err(Errno::AFNOSUPPORT));
        assert_eq!(Named::decode(&[0, 0]), Ok(Named::Unspecified));
        assert_eq!(Named::decode(&[&[1, 0][..], &[b'a'; 109]].concat()), Err(Errno::INVAL));
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_address() {
        assert_eq!(inet("[::ffff:1.2.3.4]:5").canonical(), Some("1.2.3.4:5".parse().expect("address")));
        assert_eq!(inet("1.2.3.4:5").seen_by(Family::Inet6), inet("[::ffff:1.2.3.4]:5"));
        assert!(inet("[::]:80").accepts(&inet("127.0.0.1:80")));
        assert!(!inet("0.0.0.0:80").accepts(&inet("[::1]:80")));
        assert!(!inet("0.0.0.0:80").accepts(&inet("10.0.0.1:80")));
        assert!(!inet("127.0.0.1:80").accepts(&inet("127.0.0.1:81")));
    }
}

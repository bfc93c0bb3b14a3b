//! Structs of the x86-64 Linux ABI that cross between guest and host, exactly as the kernel lays them out.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct __kernel_timespec`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Timespec {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanoseconds: i64,
}

impl Timespec {
    /// As nanoseconds; saturates far in the future.
    ///
    /// # Errors
    ///
    /// EINVAL for negative seconds or nanoseconds out of range, as `nanosleep(2)` and `ppoll(2)` answer.
    pub fn to_ns(self) -> Result<u64, rustix::io::Errno> {
        match (u64::try_from(self.seconds), u64::try_from(self.nanoseconds)) {
            (Ok(seconds), Ok(nanoseconds)) if nanoseconds < 1_000_000_000 => {
                Ok(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
            }
            _ => Err(rustix::io::Errno::INVAL),
        }
    }

    /// From nanoseconds.
    #[must_use]
    pub fn from_ns(nanoseconds: u64) -> Self {
        Self { seconds: (nanoseconds / 1_000_000_000).cast_signed(), nanoseconds: (nanoseconds % 1_000_000_000).cast_signed() }
    }
}

/// `struct timeval`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Timeval {
    /// Seconds.
    pub seconds: i64,
    /// Microseconds, 0 to 999,999.
    pub microseconds: i64,
}

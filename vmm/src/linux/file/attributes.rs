//! What `stat(2)` and `statx(2)` say about a file, and the two structs they say it in.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use linux_raw_sys::general as abi;

/// A moment of a file's history.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StatxTime {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanoseconds: u32,
    reserved: i32,
}

impl StatxTime {
    /// A moment.
    #[must_use]
    pub const fn new(seconds: i64, nanoseconds: u32) -> Self {
        Self { seconds, nanoseconds, reserved: 0 }
    }
}

/// The attributes of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Device that holds the file: major and minor number.
    pub device: (u32, u32),
    /// Inode number.
    pub inode: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub links: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device that a device node stands for.
    pub special_device: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// Good size for reads and writes, bytes.
    pub block_size: u32,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Last read.
    pub accessed: StatxTime,
    /// Last write of content.
    pub modified: StatxTime,
    /// Last write of attributes.
    pub changed: StatxTime,
    /// Creation, where known.
    pub born: Option<StatxTime>,
}

/// `struct stat` of x86-64.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Stat {
    device: u64,
    inode: u64,
    links: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    padding: u32,
    special_device: u64,
    size: i64,
    block_size: i64,
    blocks: i64,
    accessed: [u64; 2],
    modified: [u64; 2],
    changed: [u64; 2],
    unused: [u64; 3],
}

const _: () = assert!(size_of::<Stat>() == size_of::<abi::stat>() && size_of::<Stat>() == 144);

/// `struct statx`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Statx {
    mask: u32,
    block_size: u32,
    attributes: u64,
    links: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    spare: u16,
    inode: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    accessed: StatxTime,
    born: StatxTime,
    changed: StatxTime,
    modified: StatxTime,
    special_device: [u32; 2],
    device: [u32; 2],
    mount: u64,
    rest: [u64; 13],
}

const _: () = assert!(size_of::<Statx>() == size_of::<abi::statx>() && size_of::<Statx>() == 256);

/// A device number as `struct stat` holds it (`makedev(3)`).
#[must_use]
pub const fn device_number((major, minor): (u32, u32)) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
}

const fn device_parts(number: u64) -> (u32, u32) {
    let major = (number >> 8) & 0xfff | (number >> 32) & !0xfff;
    let minor = number & 0xff | (number >> 12) & !0xff;
    (major as u32, minor as u32)
}

impl From<&rustix::fs::Stat> for Attributes {
    fn from(status: &rustix::fs::Stat) -> Self {
        let time = |seconds: i64, nanoseconds: u64| StatxTime::new(seconds, u32::try_from(nanoseconds).unwrap_or(0));
        Self {
            device: device_parts(status.st_dev),
            inode: status.st_ino,
            mode: status.st_mode,
            links: status.st_nlink,
            uid: status.st_uid,
            gid: status.st_gid,
            special_device: device_parts(status.st_rdev),
            size: u64::try_from(status.st_size).unwrap_or(0),
            block_size: u32::try_from(status.st_blksize).unwrap_or(4096),
            blocks: u64::try_from(status.st_blocks).unwrap_or(0),
            accessed: time(status.st_atime, status.st_atime_nsec),
            modified: time(status.st_mtime, status.st_mtime_nsec),
            changed: time(status.st_ctime, status.st_ctime_nsec),
            born: None,
        }
    }
}

impl Attributes {
    /// As `stat(2)` writes it.
    #[must_use]
    pub fn to_stat(&self) -> Stat {
        let time = |time: StatxTime| [time.seconds.cast_unsigned(), u64::from(time.nanoseconds)];
        Stat {
            device: device_number(self.device),
            inode: self.inode,
            links: self.links,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            padding: 0,
            special_device: device_number(self.special_device),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            block_size: i64::from(self.block_size),
            blocks: i64::try_from(self.blocks).unwrap_or(i64::MAX),
            accessed: time(self.accessed),
            modified: time(self.modified),
            changed: time(self.changed),
            unused: [0; 3],
        }
    }

    /// As `statx(2)` writes it. Everything that is known is given, whatever was asked for, as Linux does.
    #[must_use]
    pub fn to_statx(&self) -> Statx {
        let born = self.born.map_or(0, |_| abi::STATX_BTIME);
        Statx {
            mask: abi::STATX_BASIC_STATS | born,
            block_size: self.block_size,
            attributes: 0,
            links: u32::try_from(self.links).unwrap_or(u32::MAX),
            uid: self.uid,
            gid: self.gid,
            mode: self.mode as u16,
            spare: 0,
            inode: self.inode,
            size: self.size,
            blocks: self.blocks,
            attributes_mask: 0,
            accessed: self.accessed,
            born: self.born.unwrap_or_default(),
            changed: self.changed,
            modified: self.modified,
            special_device: self.special_device.into(),
            device: self.device.into(),
            mount: 0,
            rest: [0; 13],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_split_and_join() {
        for parts in [(0, 0), (8, 1), (259, 65_537), (4095, 255), (5000, 300)] {
            assert_eq!(device_parts(device_number(parts)), parts);
        }
    }
}

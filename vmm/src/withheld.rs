//! Features of the host's kernel that are to be treated as absent: `KVMSERVER_WITHOUT=dirty-ring,sync-registers`.
//!
//! There is another way for each of them, for older kernels and other processors; with this variable it is taken where the feature exists, to test it.

use std::sync::OnceLock;

/// The environment variable.
pub const VARIABLE: &str = "KVMSERVER_WITHOUT";

/// A feature that can be done without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `KVM_CAP_DIRTY_LOG_RING` and its successor (Linux 5.11).
    DirtyRing,
    /// `KVM_CAP_SYNC_REGS` (Linux 4.18).
    SyncRegisters,
    /// The `PAGEMAP_SCAN` ioctl (Linux 6.7).
    PagemapScan,
    /// A guest's time-stamp counter that is the host's.
    TimeStampCounter,
    /// CR4.FSGSBASE. Where the host's processor has it on for all that runs on it, programs can use it all the same.
    Fsgsbase,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::DirtyRing, Self::SyncRegisters, Self::PagemapScan, Self::TimeStampCounter, Self::Fsgsbase];

    /// As it is written in the variable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DirtyRing => "dirty-ring",
            Self::SyncRegisters => "sync-registers",
            Self::PagemapScan => "pagemap-scan",
            Self::TimeStampCounter => "time-stamp-counter",
            Self::Fsgsbase => "fsgsbase",
        }
    }

    /// Whether it is to be treated as absent.
    #[must_use]
    pub fn is_withheld(self) -> bool {
        withheld().as_ref().is_ok_and(|features| features.contains(&self))
    }
}

/// The names of all features, for people.
#[must_use]
pub fn known() -> String {
    Feature::ALL.map(Feature::name).join(", ")
}

/// What the variable names; the first unknown name where there is one.
fn parse(value: &str) -> Result<Vec<Feature>, String> {
    let find = |name: &str| Feature::ALL.into_iter().find(|feature| feature.name() == name).ok_or_else(|| name.to_owned());
    value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(find).collect()
}

/// The features that the environment of this process withholds.
///
/// # Errors
///
/// The first name that is no feature.
pub fn withheld() -> &'static Result<Vec<Feature>, String> {
    static WITHHELD: OnceLock<Result<Vec<Feature>, String>> = OnceLock::new();
    WITHHELD.get_or_init(|| parse(&std::env::var(VARIABLE).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_features_or_an_error() {
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse("pagemap-scan, dirty-ring"), Ok(vec![Feature::PagemapScan, Feature::DirtyRing]));
        assert_eq!(parse("dirty-ring,nonsense"), Err("nonsense".to_owned()));
    }
}

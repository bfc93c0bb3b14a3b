//! How many cases a property test tries.

use proptest::test_runner::Config;

/// `cases`, or as many as `PROPTEST_CASES` says: `scripts/fuzz` asks for more than a test run has time for.
pub(crate) fn cases(cases: u32) -> Config {
    // The default has looked at the environment.
    let found = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { found } else { Config { cases, ..found } }
}

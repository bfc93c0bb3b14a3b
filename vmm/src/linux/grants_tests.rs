//! Rules: which path may be used how, and which address.

use proptest::prelude::*;

use super::*;
use crate::config::Volume;

fn config(read: &[&str], write: &[&str]) -> SandboxConfig {
    let list = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    SandboxConfig { read: list(read), write: list(write), working_directory: "/".to_owned(), ..SandboxConfig::default() }
}

fn grants(read: &[&str], write: &[&str]) -> Grants {
    Grants::new(&config(read, write), Vec::new()).expect("grants")
}

#[test]
fn k1_a_slash_at_the_end_changes_nothing() {
    for grants in [grants(&["/usr/"], &[]), grants(&["/usr"], &[]), grants(&["//usr/."], &[]), grants(&["/usr/share/.."], &[])] {
        assert!(grants.access(b"/usr/x").read);
        assert!(grants.access(b"/usr").read);
        assert!(!grants.access(b"/usrx").any());
    }
}

#[test]
fn k2_a_narrow_rule_takes_nothing_from_a_broad_one() {
    let grants = grants(&["/"], &["/usr"]);
    assert_eq!(grants.access(b"/usr/x"), Access { read: true, write: true });
    assert_eq!(grants.access(b"/x"), Access { read: true, write: false });
}

#[test]
fn a_volume_has_only_its_own_rights() {
    let mut config = config(&["/"], &["/"]);
    config.volumes.push(Volume { host: "/usr".to_owned(), guest: "/data".to_owned(), write: false });
    let grants = Grants::new(&config, Vec::new()).expect("grants");
    assert_eq!(grants.access(b"/data/x"), Access { read: true, write: false });
    assert_eq!(grants.access(b"/datax"), Access { read: true, write: true });
}

#[test]
fn a_link_on_the_way_stays_a_link() {
    let directory = std::env::temp_dir().join(format!("grants-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("real/deep")).expect("directory");
    let _ = std::os::unix::fs::symlink("real", directory.join("link"));
    let base = directory.to_str().expect("text").to_owned();
    let grants = grants(&[&format!("{base}/link/deep")], &[]);
    assert!(grants.access(format!("{base}/real/deep/x").as_bytes()).read);
    assert_eq!(grants.link_at(format!("{base}/link").as_bytes()), Some(&b"real"[..]));
    std::fs::remove_dir_all(directory).expect("removed");
}

#[test]
fn what_is_ours_cannot_be_granted() {
    let grants = grants(&["/proc", "/dev/null", "/sys/kernel"], &["/dev"]);
    assert!(!grants.access(b"/proc/1/mem").any());
    assert!(grants.mounts().all(|(path, access)| path.ends_with(b"/libkvmserverguest.so") && !access.write));
}

#[test]
fn unix_sockets_need_both_rights() {
    let grants = grants(&["/usr", "/var"], &["/var"]);
    assert!(grants.may_use_unix(b"/var/x"));
    assert!(grants.may_use_unix(b"/usr/../var/x"));
    assert!(!grants.may_use_unix(b"/var/../usr/x"));
}

fn rule(address: Option<&str>, port: Option<u16>) -> NetRule {
    NetRule { address: address.map(|text| text.parse().expect("address")), port }
}

/// K3: several addresses of one family.
#[test]
fn k3_addresses_and_ports() {
    let mut config = config(&[], &[]);
    config.connect =
        vec![rule(Some("::1"), None), rule(Some("2001:db8::1"), Some(443)), rule(Some("10.0.0.1"), Some(80)), rule(None, Some(53))];
    let grants = Grants::new(&config, Vec::new()).expect("grants");
    let may = |text: &str| grants.may_connect(text.parse().expect("address"));
    assert!(may("[::1]:1") && may("[2001:db8::1]:443") && may("10.0.0.1:80") && may("1.2.3.4:53") && may("[::ffff:10.0.0.1]:80"));
    assert!(!may("[2001:db8::1]:80") && !may("10.0.0.1:81") && !may("10.0.0.2:80") && !may("[::2]:1"));
    assert!(!grants.may_listen("10.0.0.1:80".parse().expect("address")));
}

/// The rules as a reader of the manual would apply them, without any cleverness.
fn naive(read: &[String], write: &[String], path: &str) -> Access {
    let covers = |grant: &String| {
        let mut at = Some(std::path::Path::new(path));
        while let Some(here) = at {
            if here == std::path::Path::new(grant) {
                return true;
            }
            at = here.parent();
        }
        false
    };
    Access { read: read.iter().any(covers), write: write.iter().any(covers) }
}

fn any_path() -> impl Strategy<Value = String> {
    // Names that do not exist on the host, so that no link changes what they mean.
    prop::collection::vec(prop::sample::select(vec!["no-such-a", "no-such-b", "no-such-ab"]), 0..5)
        .prop_map(|names| format!("/{}", names.join("/")))
}

proptest! {
    // K4: every lookup ends, whatever the table and the path.
    #[test]
    fn k4_agrees_with_a_naive_matcher(
        read in prop::collection::vec(any_path(), 0..4),
        write in prop::collection::vec(any_path(), 0..4),
        path in any_path(),
    ) {
        let config = SandboxConfig { read: read.clone(), write: write.clone(), working_directory: "/".to_owned(), ..SandboxConfig::default() };
        let grants = Grants::new(&config, Vec::new()).expect("grants");
        prop_assert_eq!(grants.access(path.as_bytes()), naive(&read, &write, &path));
    }
}

//! The resolver on real directories: links, `..`, volumes, and that nothing outside the grants is ever reached.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::config::{SandboxConfig, Volume};

/// A directory with a granted part and a secret beside it.
struct World {
    base: PathBuf,
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = std::env::temp_dir().join(format!("walk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(base.join("open/deep/er")).expect("directories");
        std::fs::create_dir_all(base.join("closed")).expect("directories");
        std::fs::write(base.join("open/file"), "granted").expect("file");
        std::fs::write(base.join("open/deep/file"), "granted").expect("file");
        std::fs::write(base.join("closed/secret"), "secret").expect("file");
        Self { base }
    }

    fn path(&self, rest: &str) -> String {
        format!("{}/{rest}", self.base.display())
    }

    fn grants(&self, read: &[&str], write: &[&str]) -> Grants {
        let list = |paths: &[&str]| paths.iter().map(|path| self.path(path)).collect();
        let config = SandboxConfig { read: list(read), write: list(write), working_directory: "/".to_owned(), ..SandboxConfig::default() };
        Grants::new(&config, Vec::new()).expect("grants")
    }

    fn link(&self, name: &str, target: &str) {
        symlink(target, self.base.join(name)).expect("link");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

fn find(grants: &Grants, path: &str, last: Last) -> Result<Place, Errno> {
    let walker = Walker { grants, process: None };
    walker.walk_from(walker.root()?, path.as_bytes(), last)?.existing()
}

fn read(grants: &Grants, path: &str) -> Result<String, Errno> {
    let file = grants.open_host(path.as_bytes())?;
    let mut text = String::new();
    match std::io::Read::read_to_string(&mut std::fs::File::from(file), &mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Errno::from_io_error(&error).expect("a number")),
    }
}

#[test]
fn what_is_granted_can_be_read_and_nothing_else() {
    let world = World::new();
    let grants = world.grants(&["open"], &[]);
    assert_eq!(read(&grants, &world.path("open/deep/file")).as_deref(), Ok("granted"));
    assert_eq!(read(&grants, &world.path("open//deep/.././deep/file")).as_deref(), Ok("granted"));
    assert_eq!(read(&grants, &world.path("closed/secret")), Err(Errno::NOENT));
    assert_eq!(read(&grants, &world.path("open/../closed/secret")), Err(Errno::NOENT));
    assert_eq!(read(&grants, "/etc/passwd"), Err(Errno::NOENT));
    assert_eq!(read(&grants, &world.path("open/file/")), Err(Errno::NOTDIR));
    assert_eq!(read(&grants, &world.path("open/file/x")), Err(Errno::NOTDIR));
    assert_eq!(read(&grants, &world.path("open/missing")), Err(Errno::NOENT));
}

#[test]
fn links_lead_only_where_the_guest_may_go() {
    let world = World::new();
    let grants = world.grants(&["open"], &[]);
    world.link("open/out", "../closed/secret");
    world.link("open/absolute", &world.path("closed/secret"));
    world.link("open/passwd", "/etc/passwd");
    world.link("open/in", &world.path("open/deep/file"));
    world.link("open/up", "deep/../file");
    world.link("open/directory", "deep");
    for out in ["open/out", "open/absolute", "open/passwd"] {
        assert_eq!(read(&grants, &world.path(out)), Err(Errno::NOENT), "{out}");
    }
    for inside in ["open/in", "open/up", "open/directory/file", "open/directory/../deep/file", "open/directory/er/../file"] {
        assert_eq!(read(&grants, &world.path(inside)).as_deref(), Ok("granted"), "{inside}");
    }
    assert!(find(&grants, &world.path("open/directory"), Last::Keep).expect("link").is_link());
    assert!(find(&grants, &world.path("open/directory/"), Last::Keep).expect("directory").is_directory());
}

#[test]
fn links_in_circles_end() {
    let world = World::new();
    let grants = world.grants(&["open"], &[]);
    world.link("open/one", "two");
    world.link("open/two", "one");
    world.link("open/self", "self/self");
    assert_eq!(read(&grants, &world.path("open/one")), Err(Errno::LOOP));
    assert_eq!(read(&grants, &world.path("open/self/x")), Err(Errno::LOOP));
}

#[test]
fn directories_on_the_way_show_only_the_way() {
    let world = World::new();
    let grants = world.grants(&["open/deep"], &[]);
    let way = find(&grants, &world.path("open"), Last::Follow).expect("on the way");
    assert!(matches!(way.node, Node::Virtual));
    assert_eq!(grants.names_below(&way.path), vec![b"deep".to_vec()]);
    assert_eq!(read(&grants, &world.path("open/file")), Err(Errno::NOENT));
    assert_eq!(read(&grants, &world.path("open/deep/../deep/file")).as_deref(), Ok("granted"));
    assert!(find(&grants, "/", Last::Follow).expect("root").is_directory());
}

#[test]
fn a_granted_file_follows_its_name() {
    let world = World::new();
    let grants = world.grants(&["open/file"], &["open/later"]);
    assert_eq!(read(&grants, &world.path("open/file")).as_deref(), Ok("granted"));
    assert_eq!(read(&grants, &world.path("open/deep/file")), Err(Errno::NOENT));
    std::fs::write(world.base.join("open/new"), "replaced").expect("file");
    std::fs::rename(world.base.join("open/new"), world.base.join("open/file")).expect("rename");
    assert_eq!(read(&grants, &world.path("open/file")).as_deref(), Ok("replaced"));
    let walker = Walker { grants: &grants, process: None };
    let missing = walker.walk_from(walker.root().expect("root"), world.path("open/later").as_bytes(), Last::Keep).expect("walk");
    assert!(missing.place.is_none());
    let (_, name) = walker.holder(&missing).expect("may be made");
    assert_eq!(name, b"later");
    let other = walker.walk_from(walker.root().expect("root"), world.path("open/other").as_bytes(), Last::Keep).expect("walk");
    assert_eq!(walker.holder(&other).map(|_| ()), Err(Errno::ACCESS));
}

#[test]
fn a_volume_hides_what_is_below_it() {
    let world = World::new();
    let config = SandboxConfig {
        read: vec![world.path("open")],
        volumes: vec![Volume { host: world.path("closed"), guest: world.path("open/deep"), write: false }],
        working_directory: "/".to_owned(),
        ..SandboxConfig::default()
    };
    let grants = Grants::new(&config, Vec::new()).expect("grants");
    assert_eq!(read(&grants, &world.path("open/deep/secret")).as_deref(), Ok("secret"));
    assert_eq!(read(&grants, &world.path("open/deep/file")), Err(Errno::NOENT));
    assert_eq!(read(&grants, &world.path("open/deep/../file")).as_deref(), Ok("granted"));
    world.link("open/to-volume", "deep/secret");
    assert_eq!(read(&grants, &world.path("open/to-volume")).as_deref(), Ok("secret"));
}

#[test]
fn a_volume_elsewhere_is_reached_by_virtual_directories() {
    let world = World::new();
    let config = SandboxConfig {
        volumes: vec![
            Volume { host: world.path("open"), guest: "/no-such/place/".to_owned(), write: true },
            Volume { host: world.path("closed/secret"), guest: "/no-such/one-file".to_owned(), write: false },
        ],
        working_directory: "/".to_owned(),
        ..SandboxConfig::default()
    };
    let grants = Grants::new(&config, Vec::new()).expect("grants");
    assert_eq!(read(&grants, "/no-such/place/deep/file").as_deref(), Ok("granted"));
    assert_eq!(read(&grants, "/no-such/place/../one-file").as_deref(), Ok("secret"));
    assert_eq!(read(&grants, &world.path("open/file")), Err(Errno::NOENT));
    let missing = Volume { host: world.path("missing"), guest: "/x".to_owned(), write: false };
    assert!(Grants::new(&SandboxConfig { volumes: vec![missing], ..SandboxConfig::default() }, Vec::new()).is_err());
}

#[test]
fn with_everything_granted_the_hosts_kernel_stays_out_of_reach() {
    let world = World::new();
    world.link("open/proc", "/proc/self/environ");
    world.link("open/dots", "../../../../../../../../../proc/self/environ");
    let config = SandboxConfig { read: vec!["/".to_owned()], working_directory: "/".to_owned(), ..SandboxConfig::default() };
    let grants = Grants::new(&config, Vec::new()).expect("grants");
    assert_eq!(read(&grants, &world.path("open/file")).as_deref(), Ok("granted"));
    for path in ["/proc/self/environ", "/usr/../proc/self/environ", "/proc/1/maps", "/sys/kernel/notes", "/dev/kmsg"] {
        assert_eq!(read(&grants, path), Err(Errno::NOENT), "{path}");
    }
    for path in ["open/proc", "open/dots"] {
        assert_eq!(read(&grants, &world.path(path)), Err(Errno::NOENT), "{path}");
    }
    // The same under another name: a volume of /proc itself, as a mount of it elsewhere would be.
    let volumes = ["/proc", "/sys", "/dev"].map(|host| Volume { host: host.to_owned(), guest: format!("/mine{host}"), write: true });
    let config = SandboxConfig { volumes: volumes.into(), working_directory: "/".to_owned(), ..SandboxConfig::default() };
    let grants = Grants::new(&config, Vec::new()).expect("grants");
    for path in ["/mine/proc/self/environ", "/mine/proc/self/root/etc/passwd", "/mine/sys/kernel/notes", "/mine/dev/null"] {
        assert!(read(&grants, path).is_err(), "{path}");
    }
}

#[test]
fn fifos_and_sockets_are_never_opened() {
    let world = World::new();
    let grants = world.grants(&["open"], &["open"]);
    let fifo = world.base.join("open/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0)
        .expect("fifo");
    let _listener = std::os::unix::net::UnixListener::bind(world.base.join("open/socket")).expect("socket");
    assert_eq!(read(&grants, &world.path("open/fifo")), Err(Errno::NXIO));
    assert_eq!(read(&grants, &world.path("open/socket")), Err(Errno::NXIO));
}

#[test]
fn names_and_paths_have_limits() {
    let world = World::new();
    let grants = world.grants(&["open"], &[]);
    let long = "x".repeat(300);
    assert_eq!(read(&grants, &world.path(&format!("open/{long}"))), Err(Errno::NAMETOOLONG));
    assert_eq!(read(&grants, &world.path(&format!("open/{long}/x"))), Err(Errno::NAMETOOLONG));
    assert_eq!(read(&grants, &"/x".repeat(2100)), Err(Errno::NAMETOOLONG));
    assert_eq!(read(&grants, &world.path(&format!("open/{}file", "deep/../".repeat(400)))).as_deref(), Ok("granted"));
}

#[test]
fn bounded_walks_stay_in_their_bounds() {
    let world = World::new();
    let grants = world.grants(&["open"], &[]);
    let walker = Walker { grants: &grants, process: None };
    let deep = find(&grants, &world.path("open/deep"), Last::Follow).expect("deep");
    world.link("open/deep/up", "../file");
    world.link("open/deep/root", "/file");
    let scoped = |flags: u32, path: &str| {
        let scope = Scope::from_resolve(u64::from(flags)).expect("scope");
        walker.walk_scoped(deep.clone(), path.as_bytes(), Last::Follow, scope).and_then(Found::existing).map(|place| place.path)
    };
    let file = world.path("open/deep/file").into_bytes();
    use linux_raw_sys::general as abi;
    assert_eq!(scoped(abi::RESOLVE_BENEATH, "er/../file"), Ok(file.clone()));
    assert_eq!(scoped(abi::RESOLVE_BENEATH, "../file"), Err(Errno::XDEV));
    assert_eq!(scoped(abi::RESOLVE_BENEATH, "up"), Err(Errno::XDEV));
    assert_eq!(scoped(abi::RESOLVE_BENEATH, "root"), Err(Errno::XDEV));
    assert_eq!(scoped(abi::RESOLVE_IN_ROOT, "../../file"), Ok(file.clone()));
    assert_eq!(scoped(abi::RESOLVE_IN_ROOT, "root"), Ok(file.clone()));
    assert_eq!(scoped(abi::RESOLVE_IN_ROOT, "up"), Ok(file));
    assert_eq!(scoped(abi::RESOLVE_NO_SYMLINKS, "up"), Err(Errno::LOOP));
    assert!(Scope::from_resolve(u64::from(abi::RESOLVE_NO_XDEV)).is_err());
}

/// What a path means where the whole world is granted and the host itself is the reference.
fn expected(path: &str) -> Option<PathBuf> {
    std::fs::canonicalize(Path::new(path)).ok()
}

fn any_component() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["open", "closed", "deep", "er", "file", "secret", "..", ".", "", "link", "loop", "jump", "missing"])
}

proptest! {
    #![proptest_config(crate::fuzzing::cases(300))]

    /// Any path, through links and `..`, ends where the host's kernel ends it; and with less granted it never ends outside.
    #[test]
    fn k4_walks_agree_with_the_host(components in prop::collection::vec(any_component(), 1..12)) {
        let world = World::new();
        world.link("link", "open/deep");
        world.link("open/deep/jump", "../../closed");
        world.link("open/link", &world.path("open/deep/er"));
        world.link("closed/link", "../open/deep/..");
        world.link("open/loop", "loop");
        let path = world.path(&components.join("/"));
        let all = world.grants(&["."], &[]);
        let found = find(&all, &path, Last::Follow).ok().map(|place| PathBuf::from(String::from_utf8(place.path).expect("text")));
        // Above the world there are only the virtual directories on the way to it.
        if let Some(reference) = expected(&path).filter(|reference| reference.starts_with(&world.base)) {
            prop_assert_eq!(found, Some(reference));
        } else if let Some(found) = found {
            prop_assert!(world.base.starts_with(&found), "{:?}", found);
        }
        let part = world.grants(&["open"], &[]);
        if let Ok(text) = read(&part, &path) {
            prop_assert_eq!(text, "granted");
        }
    }
}

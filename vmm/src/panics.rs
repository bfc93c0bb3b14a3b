//! A panic of ours ends what it happened in, and not the thread: it becomes a sentence for the log.
//!
//! Code whose panics are [contained](contain) says what is lost with it: a VM, a connection, in the worst case the process, which its
//! parent starts again. What such code has locked it may leave half done, so that whoever locks it next has to do without (`lock` of
//! `serve`: counters and lists of whole values) or to throw away what it finds (the storage program's VM).

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Do `work`.
///
/// # Errors
///
/// Where it panics: the message, and where in the source that was. Nothing is written to standard error then.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |panic| if IS_CONTAINED.get() { LAST.set(sentence(panic)) } else { others(panic) }));
    });
    let was_contained = IS_CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_CONTAINED.set(was_contained);
    result.map_err(|_| LAST.take())
}

fn sentence(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
    let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
    format!("internal error: {}{place}", text.unwrap_or("a panic without a message"))
}

/// Panics that tests ask for. Other builds have none of it.
#[cfg(test)]
pub(crate) mod injected {
    use std::sync::Mutex;

    static PLACES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

    /// The next thread with a VM that passes each of these places panics.
    pub(crate) fn ask_for(places: &[&'static str]) {
        PLACES.lock().unwrap().extend(places);
    }

    /// Whether all that were asked for have happened.
    pub(crate) fn is_over() -> bool {
        PLACES.lock().unwrap().is_empty()
    }

    /// Pass a place.
    pub(crate) fn pass(place: &str) {
        // The watch does some of the same work while all others are busy.
        if !std::thread::current().name().is_some_and(|name| name.starts_with("vm-")) {
            return;
        }
        let mut places = PLACES.lock().unwrap();
        if let Some(index) = places.iter().position(|&asked| asked == place) {
            places.remove(index);
            drop(places);
            panic!("injected: {place}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_sentence_and_the_thread_goes_on() {
        assert_eq!(contain(|| 3), Ok(3));
        let number = std::hint::black_box(0_u8);
        let text = contain(|| number - 1).unwrap_err();
        assert!(text.starts_with("internal error: attempt to subtract with overflow (") && text.contains("panics.rs:"), "{text}");
        let inner = contain(|| contain(|| panic!("{}", "inner")).unwrap_err()).unwrap();
        assert!(inner.starts_with("internal error: inner ("), "{inner}");
        let outer = contain(|| {
            let _ = contain(|| panic!("inner"));
            panic!("outer")
        });
        assert!(outer.is_err_and(|text: String| text.contains("outer")));
        let wordless = contain(|| std::panic::panic_any(7)).unwrap_err();
        assert!(wordless.starts_with("internal error: a panic without a message ("), "{wordless}");
    }
}

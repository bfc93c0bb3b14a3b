//! What is told of a storage program, kept until somebody takes it to the log. A program that dies again and again is told of now and
//! then, with how often it was.

use crate::linux::clock::host_monotonic;

/// Messages that are kept until somebody takes them.
const KEPT_MAX: usize = 64;
/// Messages of one kind that are told in one window, as the log does with lines that are the same; these never are, since they have
/// addresses and times in them.
const TOLD_MAX: u32 = 5;
const WINDOW_NS: u64 = 10_000_000_000;

/// Something that happened to the storage program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `error`, `warning` or `info`.
    pub level: &'static str,
    /// One sentence.
    pub text: String,
}

/// The messages, and what was held back.
#[derive(Debug, Default)]
pub(super) struct Notices {
    kept: Vec<Message>,
    failures: Window,
    starts: Window,
}

/// How many messages of one kind there were of late.
#[derive(Debug, Default)]
struct Window {
    start: u64,
    told: u32,
    held_back: u64,
}

impl Window {
    /// Whether a message may be told now, and how many were not since the last one.
    fn admit(&mut self, now: u64) -> Option<u64> {
        if now.saturating_sub(self.start) >= WINDOW_NS {
            (self.start, self.told) = (now, 0);
        }
        if self.told >= TOLD_MAX {
            self.held_back += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

fn with_count(text: String, held_back: u64) -> String {
    if held_back == 0 { text } else { format!("{text} (and {held_back} times more before)") }
}

impl Notices {
    fn keep(&mut self, level: &'static str, text: String) {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(Message { level, text });
        }
    }

    /// The program has ended, or could not be started.
    pub(super) fn failed(&mut self, text: String) {
        if let Some(held_back) = self.failures.admit(host_monotonic()) {
            self.keep("warning", with_count(text, held_back));
        }
    }

    /// It runs again.
    pub(super) fn started(&mut self, text: String) {
        if let Some(held_back) = self.starts.admit(host_monotonic()) {
            self.keep("warning", with_count(text, held_back));
        }
    }

    /// Something that the log counts itself when it comes again.
    pub(super) fn note(&mut self, text: String) {
        self.keep("warning", text);
    }

    /// What should not happen.
    pub(super) fn error(&mut self, text: String) {
        self.keep("error", text);
    }

    /// All that has not been taken yet.
    pub(super) fn take(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_often_is_counted_and_told_with_the_next() {
        let mut window = Window { start: 1, ..Window::default() };
        let told = (0..8).map(|moment| window.admit(2 + moment)).collect::<Vec<_>>();
        assert_eq!(told, [Some(0), Some(0), Some(0), Some(0), Some(0), None, None, None]);
        assert_eq!([window.admit(WINDOW_NS), window.admit(WINDOW_NS + 1), window.admit(WINDOW_NS + 2)], [None, Some(4), Some(0)]);
    }

    #[test]
    fn deaths_and_starts_are_counted_apart_and_notes_not_at_all() {
        let mut notices = Notices::default();
        for number in 0..20 {
            notices.failed(format!("failure {number}"));
            notices.started(format!("start {number}"));
            notices.note(format!("note {number}"));
        }
        let texts: Vec<_> = notices.take().into_iter().map(|message| message.text).collect();
        assert_eq!(texts.len(), 2 * TOLD_MAX as usize + 20);
        assert!(texts.contains(&"failure 4".to_owned()) && texts.contains(&"start 4".to_owned()));
        assert!(!texts.contains(&"failure 5".to_owned()));
        assert!(notices.take().is_empty());
    }
}

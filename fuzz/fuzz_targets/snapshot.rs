//! A snapshot that was changed and then given digests that match, as whoever means harm would: it can be looked at, and a job goes
//! on from it, or it is refused in words, and the job leaves nothing behind. An input says what is changed, in the manifest and in the facts of
//! the video, so that it gets past their syntax. Entries keep their bytes.
#![no_main]

mod scene;
mod scratch;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::Range;

use arbitrary::Arbitrary;
use evanesce_engine::snapshot::{SnapshotMode, SnapshotStore, inspect};
use evanesce_engine::{CancelToken, JobRun, Model, Silent};

/// Changes of one text, at most: more make it slower and no stranger.
const EDITS_MAX: usize = 16;
/// Stands before the place of the facts in a manifest.
const FACTS: &str = r#""facts":"#;
/// The part that the changed facts are.
const PART: &str = "video.changed";

/// A change of a JSON text.
#[derive(Arbitrary, Debug)]
enum Edit {
    /// Another number in the place of one, counted from the first, round and round.
    Number { which: u16, value: u64 },
    /// Other bytes in the place of some.
    Bytes { at: u16, removed: u8, added: Vec<u8> },
}

#[derive(Arbitrary, Debug, Default)]
struct Changes {
    manifest: Vec<Edit>,
    facts: Vec<Edit>,
}

/// A snapshot in memory, which nobody cleans up.
#[derive(Default)]
struct Memory {
    parts: RefCell<BTreeMap<String, Vec<u8>>>,
    manifest: RefCell<Vec<u8>>,
}

impl SnapshotStore for Memory {
    fn put_part(&self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut part = Vec::new();
        fill(&mut part)?;
        self.parts.borrow_mut().insert(name.to_owned(), part);
        Ok(())
    }

    fn part_bytes(&self, name: &str) -> io::Result<u64> {
        let parts = self.parts.borrow();
        Ok(parts.get(name).ok_or(io::ErrorKind::NotFound)?.len() as u64)
    }

    fn read_part(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let parts = self.parts.borrow();
        let part = parts.get(name).ok_or(io::ErrorKind::NotFound)?;
        let rest = usize::try_from(offset).ok().and_then(|offset| part.get(offset..));
        let bytes = rest.and_then(|rest| rest.get(..into.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn publish(&self, manifest: &[u8]) -> io::Result<()> {
        *self.manifest.borrow_mut() = manifest.to_vec();
        Ok(())
    }

    fn manifest(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(Some(self.manifest.borrow().clone()))
    }

    fn retain(&self, _: &BTreeSet<String>) -> io::Result<()> {
        Ok(())
    }
}

/// A snapshot of a job between two steps of its second block.
struct Scene {
    model: &'static Model,
    store: Memory,
    /// The manifest before and behind the place of the video's facts, and these facts.
    before: String,
    after: String,
    facts: Vec<u8>,
}

impl Scene {
    fn open() -> Self {
        let (model, store) = (scene::model(), Memory::default());
        let job = JobRun::admit(model, scene::request(), scene::outputs(), CancelToken::new());
        let mut job = job.expect("the job is admitted");
        while job.position().block < 1 || job.position().steps < 1 {
            assert!(job.advance(&mut Silent).expect("the job runs").is_more());
            job.snapshot(&store, SnapshotMode::Full).expect("memory takes a snapshot");
        }
        drop(job);
        let manifest = String::from_utf8(store.manifest.take()).expect("a manifest is text");
        let (_digest, json) = manifest.split_once('\n').expect("it stands behind its digest");
        let (before, rest) = json.split_once(FACTS).expect("it says where the video's facts are");
        let (place, after) = rest.split_once('}').expect("a place is an object");
        let part = place.split('"').nth(3).expect("whose first field is the part");
        let facts = store.parts.borrow()[part].clone();
        let scene = Self { model, store, before: before.to_owned(), after: after.to_owned(), facts };
        assert!(scene.goes_on(&Changes::default()), "else the rest is for nothing");
        scene
    }

    /// Whether a job goes on from the snapshot with these changes.
    fn goes_on(&self, changes: &Changes) -> bool {
        let facts = edited(&self.facts, &changes.facts);
        let (len_bytes, digest) = (facts.len(), blake3::hash(&facts).to_hex());
        let place = format!(r#"{{"part":"{PART}","offset":0,"len_bytes":{len_bytes},"blake3":"{digest}"}}"#);
        let json = [self.before.as_str(), FACTS, &place, &self.after].concat();
        let json = edited(json.as_bytes(), &changes.manifest);
        let digest = blake3::hash(&json).to_hex();
        self.store.parts.borrow_mut().insert(PART.to_owned(), facts);
        *self.store.manifest.borrow_mut() = [digest.as_bytes(), b"\n", &json[..]].concat();
        drop(inspect(&self.store));
        let (request, outputs) = (scene::request(), scene::outputs());
        let resumed = JobRun::resume(self.model, request, outputs, CancelToken::new(), &self.store);
        matches!(resumed, Ok(Some(_)))
    }
}

fn edited(text: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut text = text.to_vec();
    for edit in edits.iter().take(EDITS_MAX) {
        match edit {
            Edit::Number { which, value } => {
                let places = numbers(&text);
                if let Some(place) = places.get(usize::from(*which) % places.len().max(1)) {
                    drop(text.splice(place.clone(), value.to_string().into_bytes()));
                }
            }
            Edit::Bytes { at, removed, added } => {
                let begin = usize::from(*at).min(text.len());
                let end = (begin + usize::from(*removed)).min(text.len());
                drop(text.splice(begin..end, added.iter().copied()));
            }
        }
    }
    text
}

/// Where the numbers of a JSON text without spaces stand; digits of strings are none.
fn numbers(text: &[u8]) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 && at > 0 && b":,[".contains(&text[at - 1]) {
            places.push(at..at + digits);
        }
        at += digits.max(1);
    }
    places
}

thread_local! {
    static SCENE: &'static Scene = Box::leak(Box::new(Scene::open()));
}

libfuzzer_sys::fuzz_target!(init: evanesce_engine::use_threads(Some(1)).expect("no pool exists"), |changes: Changes| {
    SCENE.with(|kept| {
        kept.goes_on(&changes);
        scene::check_returned(kept.model);
    });
});

//! Jobs on and off the device, and on disk: what the schedule chose is carried out here.

use std::sync::Arc;

use evanesce_engine::HeldWeights;
use tokio::runtime::Handle;

use super::keep::{Kept, NoteProgress};
use super::run::{Door, Run, Trouble};
use super::{AGAIN_AFTER_MS, Task, Worker};
use crate::clock::{Stopwatch, UnixMs};
use crate::id::VideoId;
use crate::job::{Failure, Job};
use crate::journal::note;
use crate::pressure::Level;
use crate::schedule::{Place, Seq};
use crate::store::{Ending, Fenced, JobStore};

/// Bytes a second that moves between tiers are taken to make before any was timed.
const MOVE_BYTES_PER_S: f64 = 1e9;

/// How often a job is tried again, without getting on in between, for a snapshot that cannot be read or for memory that was promised: some
/// two minutes. Then it begins anew.
const REFUSED_MAX: u32 = 8;

/// What a job says of itself that is made with weights held otherwise than when it was accepted.
const OTHER_WEIGHTS: &str = "other_weights";

impl Worker<'_> {
    /// Admits a claimed job to the engine, from its snapshot if it has one.
    pub(super) fn admit(&mut self, seq: Seq) {
        let Some(task) = self.tasks.get_mut(&seq) else { return self.schedule.leave(seq) };
        let (class, needed_bytes) = (task.job.order.class, task.job.order.device_bytes);
        if let Err(message) = self.terms.rules.check(class, needed_bytes) {
            let job = task.job.clone();
            self.stop(seq);
            return self.end(job, Ending::Failed(Failure::new("invalid_request", message)));
        }
        let snapshot = self.keeper.of(&task.job.id);
        let is_tight = self.is_tight();
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        let door = Door {
            videos: &*self.means.videos,
            pool: &self.means.pool,
            snapshot: snapshot.as_ref(),
            model_name: &self.terms.model_name,
            is_tight,
            may_wait: task.refused < REFUSED_MAX,
        };
        match Run::admit(self.model, &door, &task.job) {
            Ok(run) => {
                task.run = Some(run);
                self.schedule.moved(seq, Place::Device);
                note(&task.job.id, format_args!("started, epoch {}", task.job.epoch));
            }
            Err(Trouble::NoSpace) => self.put_off(seq),
            Err(Trouble::NotNow) => {
                task.refused += 1;
                self.put_off(seq);
            }
            Err(Trouble::Failed(failure)) => {
                let job = task.job.clone();
                self.stop(seq);
                self.end(job, Ending::Failed(failure));
            }
        }
    }

    /// Says in a claimed job whether weights are held otherwise now than when it was accepted. They are held once for the process, so it
    /// is made with them as they are; what was begun with others is begun anew, since its snapshot is of other weights.
    pub(super) fn note_weights(&mut self, seq: Seq) {
        let held = self.model.checkpoint().held();
        let Some(Task { job, .. }) = self.tasks.get_mut(&seq) else { return };
        let accepted = job.order.weights.unwrap_or(HeldWeights::Stored);
        let is_said = job.degradations.iter().any(|what| what == OTHER_WEIGHTS);
        if is_said == (held != accepted) {
            return;
        }
        let (before, now) = (accepted.as_str(), held.as_str());
        note(&job.id, format_args!("was accepted with weights held as {before}, and is made with {now}"));
        if held != accepted {
            job.degradations.push(OTHER_WEIGHTS.to_owned());
        } else {
            job.degradations.retain(|what| what != OTHER_WEIGHTS);
        }
        let written = self.means.store.amend(&job.id, job.epoch, &job.order, &job.degradations);
        if let Err(error) = self.runtime.block_on(written) {
            note(&job.id, format_args!("cannot be noted: {error}"));
        }
    }

    /// Brings a parked job back. What is in the host comes home as it is read.
    pub(super) fn resume(&mut self, seq: Seq) {
        self.means.metrics.moved("resumed");
        match self.tasks.get(&seq) {
            Some(Task { run: Some(_), .. }) => self.schedule.moved(seq, Place::Device),
            Some(Task { run: None, .. }) => self.admit(seq),
            None => self.schedule.leave(seq),
        }
        self.post_moved(seq);
    }

    /// Whether the tiers hold less than they should, for now.
    fn is_tight(&self) -> bool {
        let (now, wanted) = (self.schedule.room(), self.terms.rules.room);
        now.device_bytes < wanted.device_bytes || now.host_bytes < wanted.host_bytes
    }

    /// Tells what a job holds that has just been moved.
    fn post_moved(&self, seq: Seq) {
        let Some(Task { job, run, .. }) = self.tasks.get(&seq) else { return };
        match run {
            Some(run) => self.means.board.post(job, self.live(job, run)),
            // It is in its snapshot, and holds nothing; one that waits again is told with the queue.
            None if self.schedule.entry(seq).is_some_and(|entry| entry.place == Place::Snapshot) => {
                self.means.board.let_go(&job.id);
            }
            None => {}
        }
    }

    /// Takes a job off the device.
    pub(super) fn park(&mut self, seq: Seq, place: Place) {
        let Some(Task { job, run: Some(run), .. }) = self.tasks.get_mut(&seq) else { return self.stop(seq) };
        let id = job.id.clone();
        let watch = Stopwatch::start();
        let to_host = place == Place::Host;
        // A snapshot that is being written goes on meanwhile: it is of copies. They take room in the host, though.
        let mut is_in_host = to_host && run.run.park() == 0;
        let (mut kept, mut is_kept) = (Vec::new(), is_in_host);
        if !is_in_host {
            kept.push(self.keeper.settle(run));
            is_in_host = to_host && run.run.park() == 0;
            is_kept = is_in_host;
        }
        if !is_in_host {
            // What finds no room in the host waits in its snapshot: the last one, where none can be taken now. With one that
            // cannot be written, what was done since the last would be lost.
            let taken = self.keeper.keep(&id, run);
            is_kept = taken.is_ok() && self.keeper.has(&id);
            kept.push(taken);
        }
        kept.into_iter().for_each(|kept| self.note_kept(&id, kept));
        let was_in_host = self.schedule.entry(seq).is_some_and(|entry| entry.place == Place::Host);
        if !is_kept && self.schedule.keep_there(seq, UnixMs::now().0, AGAIN_AFTER_MS) {
            // Dropped it would begin anew.
            let so = if was_in_host {
                "could not be saved, and stays in the host"
            } else {
                "found no room to be parked in, and stays on the device"
            };
            return note(&id, so);
        }
        if !is_kept {
            note(&id, "makes way and could not be saved: what it did since its last snapshot is lost");
        }
        if !is_in_host && let Some(task) = self.tasks.get_mut(&seq) {
            task.run = None;
        }
        self.schedule.moved(seq, if is_in_host { Place::Host } else { Place::Snapshot });
        self.means.metrics.moved(if is_in_host { "parked_in_host" } else { "parked_in_snapshot" });
        self.post_moved(seq);
        note(&id, format_args!("parked in {:.3} s", watch.elapsed().as_secs_f64()));
        // A budget that was cut may fall further now.
        self.limit(self.strain.allowed());
        let is_short = self.strain.level > Level::Calm || self.schedule.room() != self.terms.rules.room;
        if is_short {
            self.give_way(seq, "parked");
        }
    }

    /// After a unit: what the schedule goes by, a snapshot if one is due, and memory.
    pub(super) fn tend(&mut self, seq: Seq) {
        let Some(Task { job, run: Some(run), .. }) = self.tasks.get_mut(&seq) else { return };
        let id = job.id.clone();
        if let Some(entry) = self.schedule.entry_mut(seq) {
            entry.held_bytes = run.run.held_bytes().iter().sum();
            entry.saved_bytes = run.run.saved_bytes();
            entry.left = self.pace.seconds_left(&job.order, &run.meter).map(milliseconds);
            // There and back.
            entry.swap = milliseconds(2.0 * entry.held_bytes as f64 / MOVE_BYTES_PER_S);
        }
        let mut kept = self.keeper.settled(run);
        let is_due = self.keeper.is_due(run) && run.pending.is_none();
        if is_due && !self.schedule.may_save(seq) {
            self.means.metrics.over_quota();
        } else if is_due {
            let is_first = !run.tend.was_kept;
            let first_note = is_first.then(|| progress_note(&self.means.store, &self.runtime, job));
            let (paused, at_once) = self.keeper.begin(&id, run, first_note);
            if run.pending.is_some() || !matches!(at_once, Ok(None)) {
                self.means.metrics.paused_to_keep(paused);
            }
            kept = match (kept, at_once) {
                (kept, Ok(None)) => kept,
                (_, at_once) => at_once,
            };
        }
        if matches!(kept, Ok(Some(_))) && !std::mem::replace(&mut run.tend.was_kept, true) {
            // Noted already, unless there was no room for a copy.
            progress_note(&self.means.store, &self.runtime, job)();
        }
        if matches!(kept, Ok(Some(_)))
            && let Some(entry) = self.schedule.entry_mut(seq)
        {
            // It has got on: units alone would say that of one that fails at the same place each time.
            entry.put_off = 0;
            if let Some(task) = self.tasks.get_mut(&seq) {
                task.refused = 0;
            }
        }
        self.note_kept(&id, kept);
        self.relieve(Some(seq));
    }

    /// Counts a snapshot, or says why there is none.
    pub(super) fn note_kept(&self, id: &VideoId, kept: Kept) {
        match kept {
            Ok(Some((taken, took))) => {
                self.means.metrics.kept(id, taken.written_bytes, taken.held_bytes, took)
            }
            Ok(None) => {}
            Err(error) => {
                self.means.metrics.not_kept();
                note(id, format_args!("has no new snapshot: {error}"));
            }
        }
    }
}

/// A job that has been kept since it was started has got on: what ended earlier starts was not its fault.
fn progress_note(store: &Arc<dyn JobStore>, runtime: &Handle, job: &Job) -> NoteProgress {
    let (store, runtime, id, epoch) = (Arc::clone(store), runtime.clone(), job.id.clone(), job.epoch);
    Box::new(move || match runtime.block_on(store.progressed(&id, epoch)) {
        // Whoever fenced it has reported, or will.
        Ok(Fenced::No | Fenced::Yes) => {}
        Err(error) => note(&id, format_args!("cannot be noted: {error}")),
    })
}

#[expect(clippy::cast_possible_truncation, reason = "a float too large saturates")]
fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1000.0).ceil() as i64
}

//! Videos encoded by threads of their own, so that the next frames are computed while the last ones are encoded.
//!
//! Each video is a lane: an ordered list of what is to be done with its sink. A thread of the pool takes a lane that has something to
//! do, does one thing, and puts the lane back behind the others. So the frames of a video stay in order, videos take turns, and
//! nothing depends on how many threads there are. A video that may wait for another process has a thread of its own: one that stalls
//! holds up no other.
//!
//! Frames that wait are bytes: each batch brings the [`Reservation`] that counts it, and one without it waits until it is encoded.

use std::collections::VecDeque;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use evanesce_cache::Reservation;

use super::error::{Result, VideoError};
use super::sink::{FrameSink, SinkState, VideoSummary};

/// Batches of frames of one video that may wait; who brings more waits itself.
const BATCHES_MAX: usize = 4;

type Sink = Box<dyn FrameSink + Send>;

/// What is to be done with a video.
enum Task {
    Push { rgb: Vec<f32>, numbers_per_frame: usize, room: Option<Reservation> },
    EndSegment,
    Save { from_bytes: u64, to: SyncSender<Result<Option<SinkState>>> },
    Complete { to: SyncSender<Result<()>> },
    Finish { to: SyncSender<Result<VideoSummary>> },
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    /// `None` while a thread works with it, and after the end.
    sink: Option<Sink>,
    is_at_work: bool,
    is_listed: bool,
    failure: Option<VideoError>,
    has_failed: bool,
}

/// One video.
#[derive(Default)]
struct Lane {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct Ready {
    lanes: VecDeque<Arc<Lane>>,
    is_closed: bool,
}

#[derive(Default)]
struct Shared {
    ready: Mutex<Ready>,
    wake: Condvar,
}

/// Threads that encode videos. They end with the pool and the last video that was opened in it.
pub struct EncoderPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for EncoderPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderPool").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl EncoderPool {
    /// Starts so many threads, one at least.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn start(n_threads: usize) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let mut threads = Vec::new();
        for _ in 0..n_threads.max(1) {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("encoder".to_owned());
            threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(Self { shared, threads })
    }

    /// A video that is encoded here; one that [waits for others](FrameSink::waits_for_others), on a thread of its own.
    #[must_use]
    pub fn open(self: &Arc<Self>, sink: Box<dyn FrameSink + Send>) -> PooledVideo {
        // Where the system has no thread to give, it is encoded with the others.
        let own = if sink.waits_for_others() { Self::start(1).ok().map(Arc::new) } else { None };
        let pool = own.unwrap_or_else(|| Arc::clone(self));
        let lane = Arc::new(Lane::default());
        lane.lock().sink = Some(sink);
        PooledVideo { lane, pool, is_between_segments: true }
    }
}

impl Drop for EncoderPool {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self, lane: &Arc<Lane>) {
        self.lock().lanes.push_back(Arc::clone(lane));
        self.wake.notify_one();
    }

    fn work(&self) {
        while let Some(lane) = self.next() {
            if lane.do_one() {
                self.list(&lane);
            }
        }
    }

    fn next(&self) -> Option<Arc<Lane>> {
        let mut ready = self.lock();
        loop {
            if let Some(lane) = ready.lanes.pop_front() {
                return Some(lane);
            }
            if ready.is_closed {
                return None;
            }
            ready = self.wake.wait(ready).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.moved.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the first task of the lane. Whether there are more.
    fn do_one(&self) -> bool {
        let mut state = self.lock();
        let (Some(task), Some(sink)) = (state.tasks.pop_front(), state.sink.take()) else {
            state.is_listed = false;
            return false;
        };
        state.is_at_work = true;
        let failed_before = state.has_failed;
        drop(state);
        // A panic of a sink fails its video and no other.
        let done = catch_unwind(AssertUnwindSafe(|| do_task(task, sink, failed_before)));
        let mut state = self.lock();
        state.is_at_work = false;
        match done {
            Ok((sink, outcome)) => {
                state.sink = sink;
                if let Err(failure) = outcome {
                    state.has_failed = true;
                    state.failure.get_or_insert(failure);
                }
            }
            Err(_panic) => {
                state.has_failed = true;
                state.failure.get_or_insert(VideoError::State("its encoder panicked"));
                // Without a sink nothing is left to do.
                state.tasks.clear();
            }
        }
        state.is_listed = !state.tasks.is_empty();
        let more = state.is_listed;
        drop(state);
        self.moved.notify_all();
        more
    }
}

/// What is left of the sink, and whether the video is still whole.
fn do_task(task: Task, mut sink: Sink, has_failed: bool) -> (Option<Sink>, Result<()>) {
    match task {
        Task::Push { rgb, numbers_per_frame, room } => {
            let mut frames = rgb.chunks_exact(numbers_per_frame.max(1));
            let outcome = if has_failed { Ok(()) } else { frames.try_for_each(|frame| sink.push(frame)) };
            drop((rgb, room));
            (Some(sink), outcome)
        }
        Task::EndSegment => {
            let outcome = if has_failed { Ok(()) } else { sink.end_segment() };
            (Some(sink), outcome)
        }
        Task::Save { from_bytes, to } => {
            // Whoever asked may have gone.
            drop(to.send(if has_failed { Err(FAILED) } else { sink.save(from_bytes) }));
            (Some(sink), Ok(()))
        }
        Task::Complete { to } => {
            drop(to.send(if has_failed { Err(FAILED) } else { sink.complete() }));
            (Some(sink), Ok(()))
        }
        Task::Finish { to } => {
            drop(to.send(if has_failed { Err(FAILED) } else { sink.finish() }));
            (None, Ok(()))
        }
    }
}

/// A video whose frames are encoded elsewhere. What goes wrong there is said at the next call. Dropped, what waits is given up and
/// what is being encoded is waited for; then nothing is left of it.
pub struct PooledVideo {
    lane: Arc<Lane>,
    pool: Arc<EncoderPool>,
    is_between_segments: bool,
}

impl std::fmt::Debug for PooledVideo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.lane.lock().tasks.len();
        f.debug_struct("PooledVideo").field("waiting", &waiting).finish_non_exhaustive()
    }
}

impl PooledVideo {
    /// Takes frames in display order, each `[height, width, 3]`. With `room`, which counts their bytes, this waits only while
    /// too many batches wait; without it, until they are encoded.
    ///
    /// # Errors
    /// What went wrong with this video since the last call.
    pub fn push(&mut self, rgb: Vec<f32>, numbers_per_frame: usize, room: Option<Reservation>) -> Result<()> {
        self.is_between_segments = false;
        let is_counted = room.is_some();
        let mut state = self.lane.lock();
        while state.tasks.len() >= BATCHES_MAX && !state.has_failed {
            state = self.lane.wait(state);
        }
        drop(state);
        self.give(Task::Push { rgb, numbers_per_frame, room })?;
        if is_counted { Ok(()) } else { self.settle() }
    }

    /// As [`FrameSink::end_segment`].
    ///
    /// # Errors
    /// What went wrong with this video since the last call.
    pub fn end_segment(&mut self) -> Result<()> {
        self.is_between_segments = true;
        self.give(Task::EndSegment)
    }

    /// Asks for what [`FrameSink::save`] gives once everything before is done; `None` in the middle of a segment, and of a video that
    /// has failed: what went wrong is told to whoever gives it more.
    #[must_use]
    pub fn save(&self, from_bytes: u64) -> Option<Receiver<Result<Option<SinkState>>>> {
        let state = self.lane.lock();
        if !self.is_between_segments || state.has_failed {
            return None;
        }
        let (to, saved) = sync_channel(1);
        self.enqueue(state, Task::Save { from_bytes, to });
        Some(saved)
    }

    /// As [`FrameSink::restore`], before anything else.
    ///
    /// # Errors
    /// As there.
    pub fn restore(&mut self, facts: &[u8], stream: &mut dyn Read) -> Result<()> {
        self.settle()?;
        let mut state = self.lane.lock();
        let Some(sink) = &mut state.sink else { return Err(GONE) };
        sink.restore(facts, stream)
    }

    /// Waits until nothing waits.
    pub fn drain(&self) {
        drop(self.drained());
    }

    /// As [`drain`](Self::drain).
    ///
    /// # Errors
    /// What went wrong with this video since the last call.
    pub fn settle(&self) -> Result<()> {
        self.drained().failure.take().map_or(Ok(()), Err)
    }

    fn drained(&self) -> MutexGuard<'_, State> {
        let mut state = self.lane.lock();
        while state.is_at_work || !state.tasks.is_empty() {
            state = self.lane.wait(state);
        }
        state
    }

    /// As [`FrameSink::complete`].
    ///
    /// # Errors
    /// As there, and what went wrong before.
    pub fn complete(&mut self) -> Result<()> {
        self.settle()?;
        let (to, outcome) = sync_channel(1);
        self.give(Task::Complete { to })?;
        let outcome = outcome.recv();
        self.settle()?;
        outcome.map_err(|_| GONE)?
    }

    /// As [`FrameSink::finish`].
    ///
    /// # Errors
    /// As there, and what went wrong before.
    pub fn finish(self) -> Result<VideoSummary> {
        self.settle()?;
        let (to, summary) = sync_channel(1);
        self.give(Task::Finish { to })?;
        let summary = summary.recv();
        self.settle()?;
        summary.map_err(|_| GONE)?
    }

    fn give(&self, task: Task) -> Result<()> {
        let mut state = self.lane.lock();
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        if state.has_failed {
            return Err(FAILED);
        }
        if state.sink.is_none() && !state.is_at_work {
            return Err(GONE);
        }
        self.enqueue(state, task);
        Ok(())
    }

    fn enqueue(&self, mut state: MutexGuard<'_, State>, task: Task) {
        state.tasks.push_back(task);
        let was_listed = std::mem::replace(&mut state.is_listed, true);
        drop(state);
        if !was_listed {
            self.pool.shared.list(&self.lane);
        }
    }
}

const FAILED: VideoError = VideoError::State("an earlier frame could not be kept");
const GONE: VideoError = VideoError::State("it has ended already");

impl Drop for PooledVideo {
    fn drop(&mut self) {
        let mut state = self.lane.lock();
        state.tasks.clear();
        while state.is_at_work {
            state = self.lane.wait(state);
        }
        let sink = state.sink.take();
        drop(state);
        // Not under the lock: it removes files.
        drop(sink);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// Counts what is alive, keeps the first number of each frame, and misbehaves where it is told to.
    struct Probe {
        alive: Arc<AtomicUsize>,
        seen: Arc<Mutex<Vec<f32>>>,
        panics_at: Option<usize>,
        fails_at: Option<usize>,
    }

    impl Probe {
        fn new(alive: &Arc<AtomicUsize>) -> Self {
            alive.fetch_add(1, Ordering::SeqCst);
            Self { alive: Arc::clone(alive), seen: Arc::default(), panics_at: None, fails_at: None }
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            self.alive.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl FrameSink for Probe {
        fn push(&mut self, rgb: &[f32]) -> Result<()> {
            let at = self.seen.lock().unwrap().len();
            assert!(self.panics_at != Some(at), "injected");
            if self.fails_at == Some(at) {
                return Err(VideoError::Encoder { frame: at, reason: "injected".to_owned() });
            }
            self.seen.lock().unwrap().push(rgb[0]);
            Ok(())
        }

        fn save(&mut self, _from_bytes: u64) -> Result<Option<SinkState>> {
            let facts = self.seen.lock().unwrap().len().to_string().into_bytes();
            Ok(Some(SinkState { facts, stream_bytes: 0, tail: Box::new(std::io::empty()) }))
        }

        fn finish(self: Box<Self>) -> Result<VideoSummary> {
            Ok(VideoSummary { frames: self.seen.lock().unwrap().len(), duration_s: 0.0, bytes: 0 })
        }
    }

    /// Takes a frame when it is told to.
    struct Waiting {
        goes_on: Receiver<()>,
    }

    impl FrameSink for Waiting {
        fn waits_for_others(&self) -> bool {
            true
        }

        fn push(&mut self, _rgb: &[f32]) -> Result<()> {
            let told = self.goes_on.recv_timeout(Duration::from_secs(20));
            told.map_err(|_| VideoError::State("it was not told to go on"))
        }

        fn finish(self: Box<Self>) -> Result<VideoSummary> {
            Ok(VideoSummary { frames: 1, duration_s: 0.0, bytes: 0 })
        }
    }

    fn room(cache: &evanesce_cache::Cache, bytes: u64) -> Option<Reservation> {
        let job = cache.open_job();
        Some(job.reserve(&[(evanesce_cache::Tier::Host, bytes)]).unwrap())
    }

    fn cache() -> evanesce_cache::Cache {
        evanesce_cache::Cache::new(evanesce_cache::Budgets { device_bytes: 1 << 20, host_bytes: 1 << 20 })
    }

    fn reserved(cache: &evanesce_cache::Cache) -> u64 {
        cache.counters().tier(evanesce_cache::Tier::Host).reserved_bytes
    }

    #[test]
    fn frames_of_each_video_stay_in_order_and_a_save_has_what_came_before_it() {
        let (pool, alive, cache) = (Arc::new(EncoderPool::start(2).unwrap()), Arc::default(), cache());
        let mut videos: Vec<_> = (0..3)
            .map(|_| {
                let probe = Probe::new(&alive);
                (Arc::clone(&probe.seen), pool.open(Box::new(probe)))
            })
            .collect();
        let mut saves = Vec::new();
        for frame in 0..20_u8 {
            for (_, video) in &mut videos {
                video.push(vec![f32::from(frame); 2], 2, room(&cache, 8)).unwrap();
                assert!(video.save(0).is_none(), "in the middle of a segment");
                video.end_segment().unwrap();
                saves.push((frame, video.save(0).unwrap()));
            }
        }
        for (frame, save) in saves {
            let state = save.recv().unwrap().unwrap().unwrap();
            assert_eq!(state.facts, (frame + 1).to_string().into_bytes());
        }
        for (seen, video) in videos {
            assert_eq!(video.finish().unwrap().frames, 20);
            assert_eq!(*seen.lock().unwrap(), (0..20_u8).map(f32::from).collect::<Vec<_>>());
        }
        assert_eq!((alive.load(Ordering::SeqCst), reserved(&cache)), (0, 0));
    }

    #[test]
    fn a_video_that_is_dropped_gives_back_every_byte_and_its_sink_at_once() {
        let (pool, alive, cache) = (Arc::new(EncoderPool::start(1).unwrap()), Arc::default(), cache());
        for n_frames in 0..6 {
            let mut video = pool.open(Box::new(Probe::new(&alive)));
            for _ in 0..n_frames {
                video.push(vec![0.0; 2], 2, room(&cache, 100)).unwrap();
            }
            drop(video);
            assert_eq!((alive.load(Ordering::SeqCst), reserved(&cache)), (0, 0), "{n_frames}");
        }
    }

    #[test]
    fn a_failure_and_a_panic_are_told_by_the_next_call_and_end_no_other_video() {
        let (pool, alive, cache) = (Arc::new(EncoderPool::start(1).unwrap()), Arc::default(), cache());
        let (mut fails, mut panics) = (Probe::new(&alive), Probe::new(&alive));
        (fails.fails_at, panics.panics_at) = (Some(1), Some(0));
        for (probe, word) in [(fails, "injected"), (panics, "panicked")] {
            let mut video = pool.open(Box::new(probe));
            // Two frames.
            video.push(vec![0.0; 4], 2, room(&cache, 16)).unwrap();
            video.drain();
            // Whoever wants to save it is told nothing, and takes nothing from whoever makes it.
            video.is_between_segments = true;
            assert!(video.save(0).is_none());
            let told = (0..50).find_map(|_| video.push(vec![0.0; 2], 2, room(&cache, 8)).err());
            let told = told.or_else(|| video.settle().err()).unwrap().to_string();
            assert!(told.contains(word), "{told}");
            // Once it has been told, it still cannot be finished.
            assert!(video.finish().is_err());
        }
        let mut other = pool.open(Box::new(Probe::new(&alive)));
        other.push(vec![0.0; 2], 2, None).unwrap();
        assert_eq!(other.finish().unwrap().frames, 1);
        assert_eq!((alive.load(Ordering::SeqCst), reserved(&cache)), (0, 0));
    }

    #[test]
    fn a_video_that_waits_for_another_process_holds_up_no_other() {
        let (pool, alive, cache) = (Arc::new(EncoderPool::start(1).unwrap()), Arc::default(), cache());
        let (tell, goes_on) = sync_channel(1);
        let mut waits = pool.open(Box::new(Waiting { goes_on }));
        waits.push(vec![0.0; 2], 2, room(&cache, 8)).unwrap();
        let mut other = pool.open(Box::new(Probe::new(&alive)));
        other.push(vec![0.0; 2], 2, room(&cache, 8)).unwrap();
        // On the pool's only thread this would come after the frame that waits, which is then given up.
        assert_eq!(other.finish().unwrap().frames, 1);
        tell.send(()).unwrap();
        assert_eq!(waits.finish().unwrap().frames, 1);
        assert_eq!((alive.load(Ordering::SeqCst), reserved(&cache)), (0, 0));
    }
}

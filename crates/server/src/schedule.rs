//! Which job does the next unit of work. Pure: what is chosen depends on what is in the table and on the moment that is handed in,
//! and on nothing else.
//!
//! The rules, in order:
//!
//! 1. What is on the device beyond a budget that was cut leaves it: the last in order first.
//! 2. A class that has gone without for [`Rules::ageing_units`] units, though it has jobs, gets this one; if another job must be
//!    parked for that, only once the moves are small beside the time it has gone without.
//! 3. Otherwise the first class with jobs that the budget can hold: interactive, standard, background.
//! 4. Within a class the earliest deadline, then the earliest arrival.
//! 5. A job that is not on the device goes there if a place and the bytes that are planned for it are free, within its class's
//!    limit and beside what is guaranteed to other classes; one place is kept for interactive jobs.
//! 6. If they are not, jobs of lower classes are parked for it, those that are cheapest to move first, but none that its
//!    class's guarantee covers. A job of its own class is parked only when it would miss its deadline otherwise, and meets it so.
//! 7. If that makes no room either, what is on the device goes on, best class first, and nothing else starts: the room
//!    that comes free is this job's.
//! 8. A job that could not go on, for want of disk space mostly, is not looked at before the moment from which it may be tried
//!    again; and no job that is on the device loses its place to it but to the host, where nothing of it is lost.
//! 9. A job for which the device has less than is planned waits while parked jobs hold what it counts on in the host, or more than the
//!    host has and the disk can spare. If it comes first, those behind it leave the host for their snapshots, if that helps.
//! 10. Where none can do a unit because others hold what it counts on, some are saved for the first that can go on then, or else dropped
//!     for the first after a pause: the last in order that help.

mod host;
mod quota;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use self::quota::share;
pub use self::quota::{DiskShares, Quota, Quotas};
use crate::job::Class;

/// A job's place in the order of arrival.
pub type Seq = i64;

/// Ageing parks others only after so many times the time that the moves take.
const SWAPS_PER_TURN: i64 = 20;

/// Bytes of the tiers that are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// For jobs on the device together.
    pub device_bytes: u64,
    /// For what parked jobs hold in the host.
    pub host_bytes: u64,
}

/// What the scheduler goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// What there is.
    pub room: Room,
    /// Jobs that may be on the device at once; at least 1.
    pub under_way_max: usize,
    /// Units that a class with jobs goes without before it gets one.
    pub ageing_units: u32,
    /// By class, in the order of [`Class::ALL`].
    pub quotas: [Quotas; Class::ALL.len()],
}

impl Rules {
    /// What jobs of a class may have of the device together, at most; anything where there is no limit: what the device cannot
    /// hold is refused elsewhere.
    #[must_use]
    pub fn most_device_bytes(&self, class: Class) -> u64 {
        let limit = self.quotas[class as usize].device.limit;
        if limit < 1.0 { share(limit, self.room.device_bytes) } else { u64::MAX }
    }

    /// Refuses a job that needs more than all jobs of its class may have.
    ///
    /// # Errors
    /// One sentence that says so.
    pub fn check(&self, class: Class, needed_bytes: u64) -> Result<(), String> {
        let most_bytes = self.most_device_bytes(class);
        let class = class.as_str();
        (needed_bytes <= most_bytes).then_some(()).ok_or_else(|| {
            format!(
                "this job needs {needed_bytes} bytes of the device, and {class} jobs may have {most_bytes} together; ask for a smaller size, fewer frames or another class"
            )
        })
    }
}

/// Where a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// It has not begun.
    #[default]
    Queue,
    /// On the device: it may do the next unit.
    Device,
    /// Parked, in memory below the device.
    Host,
    /// Parked, in its snapshot.
    Snapshot,
}

/// What the scheduler knows of a job. Moments and spans are in one unit, milliseconds in the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its class.
    pub class: Class,
    /// When it should be done.
    pub deadline: Option<i64>,
    /// Bytes of the device that are planned for it.
    pub needed_bytes: u64,
    /// With fewer than these it cannot do a unit, whatever the tiers below take.
    pub least_bytes: u64,
    /// The same beside all that the rules give: with less than this for the device it never can.
    pub least_ever_bytes: u64,
    /// Bytes of the host that it counts on where the device is cut below what is planned for it.
    pub host_bytes: u64,
    /// Bytes of the disk that are left to what others hold, where it counts on no bytes of the host.
    pub disk_spare_bytes: u64,
    /// Bytes that it holds between two units, and so while it is parked.
    pub held_bytes: u64,
    /// Bytes of its snapshot on disk.
    pub saved_bytes: u64,
    /// Time on the machine that it still needs, where that is known.
    pub left: Option<i64>,
    /// Time that parking it and bringing it back takes.
    pub swap: i64,
    /// Where it is.
    pub place: Place,
    /// It can be parked in its snapshot: it stands where one can be taken.
    pub can_be_saved: bool,
    /// There was nowhere to park it: it is not parked before it has done another unit.
    pub stays: bool,
    /// While it is not asked again to leave a place where it can do no unit, since it could not be saved.
    pub save_pause: Option<Pause>,
    /// Whose it is, if they may have only so many jobs begun at once.
    pub share: Option<Share>,
    /// While it is not tried again.
    pub pause: Option<Pause>,
    /// How often it has been put off since it got on.
    pub put_off: u32,
}

/// A span of time. A clock that is set back ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// When it began.
    pub from: i64,
    /// The first moment that is no longer in it.
    pub until: i64,
}

impl Pause {
    fn holds(&self, now: i64) -> bool {
        (self.from..self.until).contains(&now)
    }
}

/// Somebody's share of the jobs that have begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Who: any number, as long as nobody else has it.
    pub tenant: usize,
    /// Jobs that may have begun and not ended; at least 1.
    pub under_way_max: usize,
}

impl Entry {
    /// A job that has just arrived and needs so much.
    #[must_use]
    pub fn new(class: Class, needed_bytes: u64) -> Self {
        Self {
            class,
            deadline: None,
            needed_bytes,
            least_bytes: needed_bytes,
            least_ever_bytes: needed_bytes,
            host_bytes: 0,
            disk_spare_bytes: 0,
            held_bytes: 0,
            saved_bytes: 0,
            left: None,
            swap: 0,
            place: Place::Queue,
            can_be_saved: true,
            stays: false,
            save_pause: None,
            share: None,
            pause: None,
            put_off: 0,
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Start this job.
    Start(Seq),
    /// Bring this job back to the device.
    Resume(Seq),
    /// Take this job off the device: to the host, or into its snapshot.
    Park(Seq, Place),
    /// Do this job's next unit.
    Advance(Seq),
    /// There is nothing to do.
    Idle,
}

/// How long a class has gone without.
#[derive(Clone, Copy, Debug, Default)]
struct Without {
    units: u32,
    time: i64,
}

/// Jobs that wait or are under way, and how long each class has gone without.
#[derive(Clone, Debug)]
pub struct Schedule {
    rules: Rules,
    /// What there is now, which may be less than the rules say.
    room: Room,
    jobs: BTreeMap<Seq, Entry>,
    without: [Without; Class::ALL.len()],
    /// A class that stands back while others have jobs: memory is critically short.
    held_back: Option<Class>,
    disk: DiskShares,
    /// While nothing is started.
    starts_pause: Option<Pause>,
    /// While nobody is dropped though nobody could go on; `None` once somebody has gone on or made way.
    stuck: Option<Pause>,
}

impl Schedule {
    /// An empty table.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        let (jobs, without, disk) = (BTreeMap::new(), Default::default(), DiskShares::default());
        let (held_back, starts_pause, stuck) = (None, None, None);
        Self { rules, room: rules.room, jobs, without, held_back, disk, starts_pause, stuck }
    }

    /// Adds a job.
    pub fn arrive(&mut self, seq: Seq, entry: Entry) {
        self.jobs.insert(seq, entry);
    }

    /// Changes what there is.
    pub fn set_room(&mut self, room: Room) {
        self.room = room;
    }

    /// Shares the disk out among snapshots; without this they may have all of it.
    pub fn share_disk(&mut self, disk: DiskShares) {
        self.disk = disk;
    }

    /// Whether a job may have a snapshot of what it holds now, beside those of others.
    #[must_use]
    pub fn may_save(&self, seq: Seq) -> bool {
        self.jobs.get(&seq).is_some_and(|entry| self.has_disk_for(seq, entry))
    }

    fn has_disk_for(&self, seq: Seq, entry: &Entry) -> bool {
        let saved = |class: Class| -> u64 {
            let of_class = self.jobs.iter().filter(|(other, entry)| **other != seq && entry.class == class);
            of_class.map(|(_, entry)| entry.saved_bytes).fold(0, u64::saturating_add)
        };
        let quota = |class: Class| self.disk.quotas[class as usize];
        let own = saved(entry.class).saturating_add(entry.held_bytes.max(entry.saved_bytes));
        let others = Class::ALL.into_iter().filter(|class| *class != entry.class);
        let kept_free = |class: Class| share(quota(class).guarantee, self.disk.bytes);
        let others = others.map(|class| saved(class).max(kept_free(class))).fold(0, u64::saturating_add);
        own <= share(quota(entry.class).limit, self.disk.bytes)
            && own.saturating_add(others) <= self.disk.bytes
    }

    /// Holds a class back, or none: its jobs leave the device, and do nothing while others have jobs.
    pub fn hold_back(&mut self, class: Option<Class>) {
        self.held_back = class;
    }

    /// What there is now.
    #[must_use]
    pub fn room(&self) -> Room {
        self.room
    }

    /// What is known of a job.
    #[must_use]
    pub fn entry(&self, seq: Seq) -> Option<&Entry> {
        self.jobs.get(&seq)
    }

    /// The same, to be changed.
    pub fn entry_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        self.jobs.get_mut(&seq)
    }

    /// Notes where a job is now.
    pub fn moved(&mut self, seq: Seq, place: Place) {
        if let Some(entry) = self.jobs.get_mut(&seq) {
            (entry.place, entry.pause, entry.save_pause) = (place, None, None);
        }
        if matches!(place, Place::Host | Place::Snapshot) {
            self.stuck = None;
        }
    }

    /// Puts a job off that cannot go on now: it waits in this place, the first time for `first`, then twice as long each time, and
    /// never longer than `most`.
    pub fn put_off(&mut self, seq: Seq, place: Place, now: i64, (first, most): (i64, i64)) {
        self.moved(seq, place);
        if let Some(entry) = self.jobs.get_mut(&seq) {
            let delay = first.saturating_mul(1_i64 << entry.put_off.min(32)).min(most);
            entry.pause = Some(Pause { from: now, until: now.saturating_add(delay) });
            entry.put_off = entry.put_off.saturating_add(1);
        }
    }

    /// Starts nothing for so long; what has begun goes on.
    pub fn pause_starts(&mut self, now: i64, span: i64) {
        self.starts_pause = Some(Pause { from: now, until: now.saturating_add(span) });
    }

    /// The next moment from which a job may be tried that has been put off or could not be saved, or one may be dropped.
    #[must_use]
    pub fn next_try(&self, now: i64) -> Option<i64> {
        let saves = |entry: &Entry| entry.save_pause.filter(|pause| pause.holds(now));
        let pauses = self.jobs.values().flat_map(|entry| [self.pause_of(entry, now), saves(entry)]);
        let stuck = self.stuck.filter(|pause| pause.holds(now));
        pauses.flatten().chain(stuck).map(|pause| pause.until).min()
    }

    /// Notes that a job had a unit that took so long: its class has been served, the others have gone without.
    pub fn served(&mut self, seq: Seq, took: i64) {
        let Some(entry) = self.jobs.get_mut(&seq) else { return };
        (entry.stays, entry.save_pause, self.stuck) = (false, None, None);
        let served = entry.class;
        for class in Class::ALL {
            let waits = class != served && self.jobs.values().any(|entry| entry.class == class);
            let without = &mut self.without[class as usize];
            *without = if waits {
                Without { units: without.units.saturating_add(1), time: without.time.saturating_add(took) }
            } else {
                Without::default()
            };
        }
    }

    /// Removes a job, whatever has become of it.
    pub fn leave(&mut self, seq: Seq) {
        self.jobs.remove(&seq);
    }

    /// Whether the job is in the table.
    #[must_use]
    pub fn contains(&self, seq: Seq) -> bool {
        self.jobs.contains_key(&seq)
    }

    /// The jobs that have not begun, in the order in which they would start if nothing else came.
    #[must_use]
    pub fn waiting(&self) -> Vec<Seq> {
        let mut waiting: Vec<_> = self.jobs.iter().filter(|(_, entry)| entry.place == Place::Queue).collect();
        waiting.sort_by_key(|(seq, entry)| order(**seq, entry));
        waiting.into_iter().map(|(seq, _)| *seq).collect()
    }

    /// All jobs, the last in order first: so they give way.
    #[must_use]
    pub fn last_first(&self) -> Vec<Seq> {
        let mut jobs: Vec<_> = self.jobs.iter().collect();
        jobs.sort_by_key(|(seq, entry)| Reverse(order(**seq, entry)));
        jobs.into_iter().map(|(seq, _)| *seq).collect()
    }

    /// How many classes worse than this one have jobs on the device.
    #[must_use]
    pub fn worse_on_device(&self, class: Class) -> usize {
        let is_there = |worse: Class| self.on_device().any(|(_, entry)| entry.class == worse);
        Class::ALL.into_iter().filter(|worse| *worse > class && is_there(*worse)).count()
    }

    /// What to do next, at this moment.
    #[must_use]
    pub fn choose(&self, now: i64) -> Choice {
        let makes_room = self.clear_host(now).or_else(|| self.relieve(now)).or_else(|| self.make_way(now));
        if let Some(choice) = makes_room {
            return choice;
        }
        let aged = self.neglected(now).and_then(|class| Some((class, self.best_of(class, now)?)));
        if let Some((class, (seq, entry))) = aged {
            let parked = self.parks_for(seq, entry, now, true);
            let is_worth_it = parked.is_none_or(|(victim, _)| {
                let moves = entry.swap.saturating_add(self.jobs.get(&victim).map_or(0, |victim| victim.swap));
                self.without[class as usize].time >= moves.saturating_mul(SWAPS_PER_TURN)
            });
            if is_worth_it {
                return self.serve(seq, entry, parked);
            }
        }
        let Some((seq, entry)) = Class::ALL.into_iter().find_map(|class| self.best_of(class, now)) else {
            return Choice::Idle;
        };
        self.serve(seq, entry, self.parks_for(seq, entry, now, false))
    }

    /// Serves a job, parking another one for it if that is named.
    fn serve(&self, seq: Seq, entry: &Entry, parked: Option<(Seq, Place)>) -> Choice {
        if entry.place == Place::Device {
            return Choice::Advance(seq);
        }
        let admit = if entry.place == Place::Queue { Choice::Start(seq) } else { Choice::Resume(seq) };
        if self.has_room_for(entry, &[]) {
            return admit;
        }
        if let Some((victim, to)) = parked {
            return Choice::Park(victim, to);
        }
        let goes_on = self.on_device().filter(|(_, entry)| self.has_place(entry));
        match goes_on.min_by_key(|(seq, entry)| order(*seq, entry)) {
            Some((seq, _)) => Choice::Advance(seq),
            // With nothing on the device there is no room to wait for: starting it will say what is wrong.
            None if self.on_device().next().is_none() => admit,
            None => Choice::Idle,
        }
    }

    /// The best job of a class that the device can hold now.
    fn best_of(&self, class: Class, now: i64) -> Option<(Seq, &Entry)> {
        let of_class = self.jobs.iter().filter(|(_, entry)| entry.class == class && self.can_run(entry, now));
        // One that could not go on, and may park nobody on a disk for another try, hides none that may.
        let waits_for_room = |entry: &Entry| {
            entry.put_off > 0 && entry.place != Place::Device && !self.has_room_for(entry, &[])
        };
        let best = of_class.min_by_key(|(seq, entry)| (waits_for_room(entry), rank(**seq, entry)));
        best.map(|(seq, entry)| (*seq, entry))
    }

    /// The class that has gone without for longest, if for too long.
    fn neglected(&self, now: i64) -> Option<Class> {
        let aged = |class: &Class| self.without[*class as usize].units >= self.rules.ageing_units;
        let has_jobs = |class: &Class| self.best_of(*class, now).is_some();
        let neglected = Class::ALL.into_iter().filter(|class| aged(class) && has_jobs(class));
        neglected.max_by_key(|class| self.without[*class as usize].units)
    }

    fn on_device(&self) -> impl Iterator<Item = (Seq, &Entry)> {
        let there = self.jobs.iter().filter(|(_, entry)| entry.place == Place::Device);
        there.map(|(seq, entry)| (*seq, entry))
    }

    /// Whether a job stands back for others.
    fn stands_back(&self, entry: &Entry, now: i64) -> bool {
        let goes_first = |other: &Entry| {
            other.class != entry.class
                && self.has_place(other)
                && self.has_share_for(other)
                && self.pause_of(other, now).is_none()
        };
        self.held_back == Some(entry.class) && self.jobs.values().any(goes_first)
    }

    fn can_run(&self, entry: &Entry, now: i64) -> bool {
        self.could_run(entry, now) && self.has_host_for(entry)
    }

    /// Whether it can run if the host has what it counts on.
    fn could_run(&self, entry: &Entry, now: i64) -> bool {
        self.pause_of(entry, now).is_none()
            && self.fits_at_all(entry)
            && !self.stands_back(entry, now)
            && self.has_share_for(entry)
    }

    /// The pause that a job is in, the longest.
    fn pause_of(&self, entry: &Entry, now: i64) -> Option<Pause> {
        let starts = self.starts_pause.filter(|_| entry.place == Place::Queue);
        let pauses = [entry.pause, starts].into_iter().flatten();
        pauses.filter(|pause| pause.holds(now)).max_by_key(|pause| pause.until)
    }

    /// Whether whoever it belongs to may have one more job begun, or it has begun already.
    fn has_share_for(&self, entry: &Entry) -> bool {
        let Some(share) = entry.share.filter(|_| entry.place == Place::Queue) else { return true };
        let has_begun = |other: &&Entry| {
            other.place != Place::Queue && other.share.is_some_and(|theirs| theirs.tenant == share.tenant)
        };
        self.jobs.values().filter(has_begun).count() < share.under_way_max
    }

    /// Whether the device can hold it at all. What never could, with all that the rules give, is let through to be told so.
    fn fits_at_all(&self, entry: &Entry) -> bool {
        entry.least_bytes <= self.room.device_bytes || entry.least_ever_bytes > self.rules.room.device_bytes
    }

    /// Whether it can do a unit where it is, as far as memory goes.
    fn has_place(&self, entry: &Entry) -> bool {
        self.fits_at_all(entry) && self.has_host_for(entry)
    }

    /// What it takes of the device: one that could use more than there is takes all of it.
    fn claim(&self, entry: &Entry) -> u64 {
        entry.needed_bytes.min(self.room.device_bytes)
    }

    fn quota(&self, class: Class, host: bool) -> (u64, u64) {
        let quotas = self.rules.quotas[class as usize];
        let (quota, bytes) =
            if host { (quotas.host, self.room.host_bytes) } else { (quotas.device, self.room.device_bytes) };
        (share(quota.guarantee, bytes), share(quota.limit, bytes))
    }

    /// Bytes that a class has on the device, jobs in `without` left out.
    fn claimed_by(&self, class: Class, without: &[Seq]) -> u64 {
        let of_class = self.on_device().filter(|(seq, entry)| entry.class == class && !without.contains(seq));
        of_class.map(|(_, entry)| self.claim(entry)).sum()
    }

    /// Whether a job may go to the device if those in `without` were not there.
    fn has_room_for(&self, wanted: &Entry, without: &[Seq]) -> bool {
        let claim = self.claim(wanted);
        let by_class = Class::ALL.map(|class| self.claimed_by(class, without));
        let guaranteed = Class::ALL.into_iter().filter(|class| *class != wanted.class).map(|class| {
            // A job's guarantee holds only for a class that has jobs: it is room that nobody else would use.
            let present = self.jobs.values().any(|entry| entry.class == class);
            let guarantee = if present { self.quota(class, false).0 } else { 0 };
            guarantee.saturating_sub(by_class[class as usize])
        });
        let taken = by_class.iter().sum::<u64>().saturating_add(guaranteed.sum());
        let within_limit =
            by_class[wanted.class as usize].saturating_add(claim) <= self.quota(wanted.class, false).1;
        let kept_for_interactive =
            usize::from(wanted.class != Class::Interactive && self.rules.under_way_max > 1);
        let places =
            self.on_device().filter(|(seq, _)| !without.contains(seq)).count() + kept_for_interactive;
        within_limit
            && taken.saturating_add(claim) <= self.room.device_bytes
            && places < self.rules.under_way_max
    }

    /// The first job to park so that `wanted` finds room, if parking makes that room.
    fn parks_for(&self, seq: Seq, wanted: &Entry, now: i64, is_aged: bool) -> Option<(Seq, Place)> {
        if wanted.place == Place::Device || self.has_room_for(wanted, &[]) {
            return None;
        }
        let mut victims: Vec<_> = self
            .on_device()
            .filter(|(other, entry)| *other != seq && self.gives_way(entry, wanted, now, is_aged))
            .filter(|(_, entry)| !self.is_let_be(entry, now))
            .filter_map(|(other, entry)| Some((other, entry, self.berth(other, entry, Some(wanted))?)))
            // What could not go on may not be able to yet, and what is saved on a full disk is lost.
            .filter(|(_, _, to)| wanted.put_off == 0 || *to == Place::Host)
            .collect();
        victims.sort_by_key(|(other, entry, _)| (Reverse(entry.class), entry.held_bytes, Reverse(*other)));
        let mut parked = Vec::new();
        let mut first = None;
        for (other, entry, to) in victims {
            let (guarantee, _) = self.quota(entry.class, false);
            let left = self.claimed_by(entry.class, &parked).saturating_sub(self.claim(entry));
            if entry.class != wanted.class && left < guarantee {
                continue;
            }
            parked.push(other);
            first = first.or(Some((other, to)));
            if self.has_room_for(wanted, &parked) {
                return first;
            }
        }
        None
    }

    /// Whether a job on the device may be parked for another one.
    fn gives_way(&self, entry: &Entry, wanted: &Entry, now: i64, is_aged: bool) -> bool {
        if entry.class != wanted.class {
            return is_aged || entry.class > wanted.class;
        }
        // Neither is parked again for the other: the deadline that comes first stays first.
        let (Some(deadline), Some(left), Some(waits)) = (wanted.deadline, wanted.left, entry.left) else {
            return false;
        };
        let sooner = entry.deadline.is_none_or(|other| deadline < other);
        let missed = now.saturating_add(waits).saturating_add(left) > deadline;
        let met = now.saturating_add(entry.swap).saturating_add(left) <= deadline;
        sooner && missed && met
    }
}

/// Smaller goes first within a class.
fn rank(seq: Seq, entry: &Entry) -> (i64, Seq) {
    (entry.deadline.unwrap_or(i64::MAX), seq)
}

/// Smaller goes first among all.
fn order(seq: Seq, entry: &Entry) -> (Class, (i64, Seq)) {
    (entry.class, rank(seq, entry))
}

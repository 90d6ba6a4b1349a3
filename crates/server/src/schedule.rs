//! Which job does the next unit of work. Pure: what is chosen depends on what is in the table, and on nothing else.
//!
//! The rules, in order:
//!
//! 1. A class that has gone without for [`Rules::ageing_units`] units, though it has jobs, gets this one.
//! 2. Otherwise the first class with jobs: interactive, standard, background.
//! 3. Within a class the earliest deadline, then the earliest arrival. So at most one job of a class is normally under way.
//! 4. A job that is not under way starts if the bytes planned for it and for all that are under way fit the budget, and a
//!    place is free; one place is kept for interactive jobs. If not, what is under way goes on, best class first, and nothing
//!    else starts: the room that comes free is this job's.

use std::collections::BTreeMap;

use crate::job::Class;

/// A job's place in the order of arrival.
pub type Seq = i64;

/// What the scheduler goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Bytes that all jobs under way may need together.
    pub budget_bytes: u64,
    /// Jobs that may be under way at once; at least 1.
    pub under_way_max: usize,
    /// Units that a class with jobs goes without before it gets one.
    pub ageing_units: u32,
}

/// What the scheduler knows of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its class.
    pub class: Class,
    /// When it should be done; any unit will do, as long as all use the same.
    pub deadline: Option<i64>,
    /// Bytes that are planned for it.
    pub needed_bytes: u64,
    /// Whether it has been started.
    pub is_under_way: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Start this job.
    Start(Seq),
    /// Do this job's next unit.
    Advance(Seq),
    /// There is nothing to do.
    Idle,
}

/// Jobs that wait or are under way, and how long each class has gone without.
#[derive(Clone, Debug)]
pub struct Schedule {
    rules: Rules,
    jobs: BTreeMap<Seq, Entry>,
    without_units: [u32; Class::ALL.len()],
}

impl Schedule {
    /// An empty table.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules, jobs: BTreeMap::new(), without_units: [0; Class::ALL.len()] }
    }

    /// Adds a job.
    pub fn arrive(&mut self, seq: Seq, entry: Entry) {
        self.jobs.insert(seq, entry);
    }

    /// Notes that a job is under way.
    pub fn started(&mut self, seq: Seq) {
        if let Some(entry) = self.jobs.get_mut(&seq) {
            entry.is_under_way = true;
        }
    }

    /// Notes that a job had a unit: its class has been served, the others have gone without.
    pub fn served(&mut self, seq: Seq) {
        let Some(served) = self.jobs.get(&seq).map(|entry| entry.class) else { return };
        for class in Class::ALL {
            let waits = class != served && self.jobs.values().any(|entry| entry.class == class);
            let without = &mut self.without_units[class as usize];
            *without = if waits { without.saturating_add(1) } else { 0 };
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

    /// The jobs that are not under way, in the order in which they would start if nothing else came.
    #[must_use]
    pub fn waiting(&self) -> Vec<Seq> {
        let mut waiting: Vec<_> = self.jobs.iter().filter(|(_, entry)| !entry.is_under_way).collect();
        waiting.sort_by_key(|(seq, entry)| (entry.class, rank(**seq, entry)));
        waiting.into_iter().map(|(seq, _)| *seq).collect()
    }

    /// What to do next.
    #[must_use]
    pub fn choose(&self) -> Choice {
        let Some(class) = self.class_to_serve() else { return Choice::Idle };
        let of_class = self.jobs.iter().filter(|(_, entry)| entry.class == class);
        let Some((seq, entry)) = of_class.min_by_key(|(seq, entry)| rank(**seq, entry)) else {
            return Choice::Idle;
        };
        if entry.is_under_way {
            return Choice::Advance(*seq);
        }
        if self.has_room_for(entry) {
            return Choice::Start(*seq);
        }
        let under_way = self.jobs.iter().filter(|(_, entry)| entry.is_under_way);
        let best = under_way.min_by_key(|(seq, entry)| (entry.class, rank(**seq, entry)));
        // With nothing under way there is no room to wait for: starting it will say what is wrong.
        best.map_or(Choice::Start(*seq), |(seq, _)| Choice::Advance(*seq))
    }

    fn class_to_serve(&self) -> Option<Class> {
        let present = |class: &Class| self.jobs.values().any(|entry| entry.class == *class);
        let aged = |class: &Class| self.without_units[*class as usize] >= self.rules.ageing_units;
        let neglected = Class::ALL.into_iter().filter(|class| aged(class) && present(class));
        neglected
            .max_by_key(|class| self.without_units[*class as usize])
            .or_else(|| Class::ALL.into_iter().find(present))
    }

    fn has_room_for(&self, wanted: &Entry) -> bool {
        let under_way = || self.jobs.values().filter(|entry| entry.is_under_way);
        let bytes: u64 = under_way().map(|entry| entry.needed_bytes).sum();
        let kept_for_interactive =
            usize::from(wanted.class != Class::Interactive && self.rules.under_way_max > 1);
        let fits = bytes.saturating_add(wanted.needed_bytes) <= self.rules.budget_bytes;
        fits && under_way().count() + kept_for_interactive < self.rules.under_way_max
    }
}

/// Smaller goes first within a class.
fn rank(seq: Seq, entry: &Entry) -> (i64, Seq) {
    (entry.deadline.unwrap_or(i64::MAX), seq)
}

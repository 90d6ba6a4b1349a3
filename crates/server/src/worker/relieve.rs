//! What the engine's thread does when memory is short: reads how full it is, and lets jobs give up what their quality allows, those of
//! worse classes first.

use evanesce_engine::{Budgets, Counters, JobSpec, Kind, KvCodec, Needs, Tier};

use super::run::request;
use super::{Task, Worker};
use crate::job::{Class, Order};
use crate::journal::note;
use crate::machine;
use crate::pressure::{Gauge, Level, Pages, relief, smaller_edge};
use crate::schedule::{Place, Room, Seq};
use crate::store::Fenced;

/// Readings of each tier and of the process, and what they led to.
#[derive(Debug)]
pub(super) struct Strain {
    device: Gauge,
    host: Gauge,
    process: Gauge,
    process_bytes_max: u64,
    /// What the tiers should hold, as somebody set it last.
    pub(super) wanted: Budgets,
    pub(super) level: Level,
}

impl Strain {
    pub(super) fn new(config: &crate::config::PressureConfig, wanted: Budgets) -> Self {
        let gauge = Gauge::new(config);
        let process_bytes_max = config.process_bytes_max.or_else(machine::limit_bytes).unwrap_or(u64::MAX);
        let (device, host, process) = (gauge, gauge, gauge);
        Self { device, host, process, process_bytes_max, wanted, level: Level::Calm }
    }

    /// Bytes that jobs hold as a share of what the tier should hold: what the shared pool has is dropped for whoever
    /// needs the room, and pages of the device make room where the disk has some for them.
    fn read(&mut self, counters: &Counters) -> Level {
        let disk = counters.tier(Tier::Disk);
        let disk_bytes = disk.budget_bytes.saturating_sub(disk.used_bytes);
        let share = |tier: Tier, wanted: u64| {
            let shared = counters.shared.bytes[tier];
            let pages = if tier == Tier::Device { counters.kind(Kind::SelfKv).bytes[tier] } else { 0 };
            let held = pressing_bytes(counters.tier(tier).used_bytes, shared, (pages, disk_bytes));
            if wanted == 0 { 0.0 } else { held as f64 / wanted as f64 }
        };
        let tiers = [
            self.device.read(share(Tier::Device, self.wanted.device_bytes)),
            // Parked jobs may fill the host: it is for them. What follows from its being full concerns the device.
            self.host.read(share(Tier::Host, self.wanted.host_bytes)).min(Level::Watch),
        ];
        let process = machine::process_bytes().unwrap_or(0) as f64 / self.process_bytes_max as f64;
        self.level = self.process.read(process).max(tiers[0]).max(tiers[1]);
        self.level
    }

    /// What the tiers may hold now: less than they should while the process is about to pass its own limit.
    pub(super) fn allowed(&self) -> Budgets {
        let share = |bytes: u64| match self.process.level() {
            Level::Calm | Level::Watch => bytes,
            Level::High => bytes / 4 * 3,
            Level::Critical => bytes / 2,
        };
        Budgets { device_bytes: share(self.wanted.device_bytes), host_bytes: share(self.wanted.host_bytes) }
    }
}

/// What is used of a tier and makes no room for whoever needs it: what the shared pool has does, and pages do as far as the disk takes them.
fn pressing_bytes(used: u64, shared: u64, (pages, disk_bytes): (u64, u64)) -> u64 {
    used.saturating_sub(shared).saturating_sub(pages.min(disk_bytes))
}

impl Worker<'_> {
    /// Changes what the tiers should hold while jobs run.
    pub(super) fn set_budgets(&mut self, wanted: Budgets) {
        note(
            "memory",
            format_args!(
                "budgets are now {} on the device, {} in the host",
                wanted.device_bytes, wanted.host_bytes
            ),
        );
        self.strain.wanted = wanted;
        self.relieve(None);
    }

    /// Reads how full memory is, and has it made less full. `ran` has just done a unit.
    pub(super) fn relieve(&mut self, ran: Option<Seq>) {
        let before = self.strain.level;
        let level = self.strain.read(&self.model.counters());
        if level != before {
            note("memory", format_args!("pressure is {}, was {}", level.as_str(), before.as_str()));
            self.means.metrics.pressure(level);
        }
        let allowed = self.strain.allowed();
        self.limit(allowed);
        if level > Level::Calm || before > Level::Calm {
            if self.strain.process.level() > Level::Calm {
                self.model.cache().trim();
            }
            // Who gives way first finds the room that the host has.
            for seq in self.schedule.last_first() {
                self.relieve_job(seq, level, ran == Some(seq));
            }
        }
        self.schedule.hold_back((level == Level::Critical).then_some(Class::Background));
    }

    /// Brings the cache's budgets to what is allowed, as far as what must stay lets them, and tells the schedule.
    pub(super) fn limit(&mut self, allowed: Budgets) {
        let counters = self.model.counters();
        let now = |tier| counters.tier(tier).budget_bytes;
        let is_so = now(Tier::Device) == allowed.device_bytes && now(Tier::Host) == allowed.host_bytes;
        let room = Room { device_bytes: allowed.device_bytes, host_bytes: allowed.host_bytes };
        if is_so && self.schedule.room() == room {
            return;
        }
        for (tier, bytes) in [(Tier::Host, allowed.host_bytes), (Tier::Device, allowed.device_bytes)] {
            self.model.cache().set_budget(tier, bytes);
        }
        if self.schedule.room() != room {
            self.schedule.set_room(room);
            let seqs: Vec<_> = self.tasks.keys().copied().collect();
            seqs.into_iter().for_each(|seq| self.set_needs(seq));
        }
    }

    /// Tells the schedule what a job needs of memory as it is now. One that the model cannot make needs what its order says.
    pub(super) fn set_needs(&mut self, seq: Seq) {
        let Some(Task { job, needs, .. }) = self.tasks.get(&seq) else { return };
        let (needs, needed_bytes) = (*needs, job.order.device_bytes);
        let (room, rules_room) = (self.schedule.room(), self.terms.rules.room);
        let least = needs.map(|needs| (self.least(needs, room), self.least(needs, rules_room)));
        let spare = |needs: Needs| needs.disk_spare_bytes(room.device_bytes, self.model.cache().disk());
        let disk_spare_bytes = needs.map_or(0, spare);
        let Some(entry) = self.schedule.entry_mut(seq) else { return };
        (entry.needed_bytes, entry.least_bytes) = (needed_bytes, needed_bytes);
        (entry.least_ever_bytes, entry.host_bytes, entry.disk_spare_bytes) = (needed_bytes, 0, 0);
        if let Some((now, ever)) = least {
            entry.least_bytes = now.device_bytes.min(needed_bytes);
            entry.least_ever_bytes = ever.device_bytes;
            (entry.host_bytes, entry.disk_spare_bytes) = (now.host_bytes, disk_spare_bytes);
        }
    }

    /// What an order needs of memory; `None` for one that the model cannot make.
    pub(super) fn needs(&self, order: &Order) -> Option<Needs> {
        let spec = JobSpec::new(request(order), self.model.checkpoint()).ok()?;
        self.model.needs(&spec).ok()
    }

    /// With fewer bytes of the device than these a job cannot do a unit, whatever it may have of this room in the host; and what it must
    /// have of the host beside this room on the device.
    fn least(&self, needs: Needs, Room { device_bytes, host_bytes }: Room) -> Room {
        let least = needs.least(Budgets { device_bytes, host_bytes }, self.model.cache().disk());
        Room { device_bytes: least.device_bytes, host_bytes: least.host_bytes }
    }

    fn relieve_job(&mut self, seq: Seq, level: Level, runs: bool) {
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        let order = &task.job.order;
        let level = level.behind(self.schedule.worse_on_device(order.class));
        let relief = relief(level, order.quality);
        let is_parked = self.schedule.entry(seq).is_none_or(|entry| entry.place != Place::Device);
        let mut gave_way = Vec::new();
        let Some(run) = &mut task.run else { return };
        if relief.drops_recomputable && !runs && !is_parked && run.run.drop_recomputable() > 0 {
            gave_way.push("dropped_recomputable");
        }
        if relief.demotes_cold && !is_parked && run.run.demote_cold() > 0 {
            gave_way.push("demoted_cold");
        }
        let rollout = run.run.spec().rollout;
        if let Some(rollout) = rollout {
            let asked = run.run.spec().kv_codec;
            let (codec, name) = match relief.pages {
                Pages::AsAsked => (Some(asked), None),
                Pages::Int8 => (KvCodec::from_name("int8"), Some("pages_int8")),
                Pages::Int4 => (KvCodec::from_name("int4"), Some("pages_int4")),
            };
            // Never larger than asked.
            if let Some(codec) = codec.filter(|codec| codec.is_no_larger_than(asked)) {
                run.run.store_pages_as(codec);
                gave_way.extend(name);
            }
            let half = (rollout.recent_frames / 2).max(1);
            run.run.see_recent_frames(if relief.halves_window { half } else { rollout.recent_frames });
            gave_way
                .extend((relief.halves_window && half < rollout.recent_frames).then_some("window_halved"));
        }
        let undone =
            run.relief.is_some_and(|before| before.pages != relief.pages && relief.pages == Pages::AsAsked);
        run.relief = Some(relief);
        if undone {
            self.means.metrics.gave_way("undone");
            note(&task.job.id, "stores pages as asked again: there is memory, or a worse class gives way");
        }
        for what in gave_way {
            self.give_way(seq, what);
        }
    }

    /// Writes down what gave way in a job: in the job, in a metric and in the log, once for each kind. What the store cannot take
    /// now it is given with the next.
    pub(super) fn give_way(&mut self, seq: Seq, what: &'static str) {
        let Some(Task { job, .. }) = self.tasks.get_mut(&seq) else { return };
        self.means.metrics.gave_way(what);
        if job.degradations.iter().any(|before| before == what) {
            return;
        }
        note(&job.id, format_args!("memory is short: {what}"));
        job.degradations.push(what.to_owned());
        let written = self.means.store.amend(&job.id, job.epoch, &job.order, &job.degradations);
        if let Err(error) = self.runtime.block_on(written) {
            note(&job.id, format!("cannot be noted: {error}"));
        }
    }

    /// Lets a draft that begins now begin smaller, where memory is critically short.
    pub(super) fn begin_smaller(&mut self, seq: Seq) {
        if self.strain.level == Level::Critical {
            // What was parked since the last unit may have made room.
            self.relieve(None);
        }
        let grid_px = self.model.checkpoint().size_rule().pixels;
        let Some(Task { job, needs, .. }) = self.tasks.get_mut(&seq) else { return };
        let has_begun = self.keeper.of(&job.id).is_some_and(|snapshot| snapshot.path().exists());
        let is_smaller = job.degradations.iter().any(|what| what == "smaller_size");
        // Nobody under way can give this up, so it is nobody's turn before: what a worse class can do by now is to be parked.
        if has_begun || is_smaller || !relief(self.strain.level, job.order.quality).begins_smaller {
            return;
        }
        let (width, height) =
            (smaller_edge(job.order.width, grid_px), smaller_edge(job.order.height, grid_px));
        let mut order = job.order.clone();
        (order.width, order.height) = (width, height);
        if (width, height) == (job.order.width, job.order.height) {
            return;
        }
        let spec = JobSpec::new(request(&order), self.model.checkpoint());
        let Ok(smaller) = spec.and_then(|spec| self.model.needs(&spec)) else { return };
        order.device_bytes = smaller.device_bytes();
        let mut degradations = job.degradations.clone();
        degradations.push("smaller_size".to_owned());
        // What is made is what is written: where it cannot be, the video keeps its size.
        let written = self.means.store.amend(&job.id, job.epoch, &order, &degradations);
        match self.runtime.block_on(written) {
            Ok(Fenced::No) => {
                note(&job.id, "memory is short: smaller_size");
                self.means.metrics.gave_way("smaller_size");
                (job.order, job.degradations, *needs) = (order, degradations, Some(smaller));
                self.set_needs(seq);
            }
            Ok(Fenced::Yes) => {}
            Err(error) => note(&job.id, format!("keeps its size, since another cannot be noted: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_press_as_far_as_the_disk_has_no_room_for_them() {
        let pressing = |pages, disk_bytes| pressing_bytes(100, 20, (pages, disk_bytes));
        assert_eq!(pressing(60, 0), 80, "there is no disk, or it is full");
        assert_eq!([pressing(60, 50), pressing(60, 1000)], [30, 20]);
    }
}

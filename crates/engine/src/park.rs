//! Making room between two units of a job, in the order of what it costs: what can be computed again, what is read last, all.
//! None of it changes a bit of the video.

use evanesce_cache::{Key, Kind, Owned, Tier};
use evanesce_wan::kernels::Scratch;
use evanesce_wan::weights::Component;

use crate::keys::{self, BranchName};
use crate::run::{JobRun, Phase};
use crate::self_kv::KvCodec;

impl JobRun<'_> {
    /// Gives up what the job can compute again: keys and values of its text. Bytes that came back.
    pub fn drop_recomputable(&mut self) -> u64 {
        let before = self.job.usage().bytes.total();
        for owned in self.job.entries().iter().filter(|owned| owned.key.kind == Kind::CrossKv) {
            self.job.remove(&owned.key);
        }
        before.saturating_sub(self.job.usage().bytes.total())
    }

    /// Sends the pages of the expert that is not at work below the device. Bytes that left the device.
    pub fn demote_cold(&mut self) -> u64 {
        let at_work = match self.phase_to_save() {
            Phase::Noise { .. } => Some(self.itinerary.passing(0)),
            Phase::Step { at, .. } => Some(self.itinerary.passing(at)),
            Phase::Commit { at, .. } => Some(self.itinerary.committing(at)),
            Phase::Prompt { .. } | Phase::LatentFrame { .. } | Phase::Close | Phase::Done => None,
        };
        // Experts may share their pages.
        let blueprint = &self.model.blueprint;
        let at_work =
            at_work.zip(self.spec.rollout).map(|(expert, rollout)| blueprint.context_of(rollout, expert));
        let is_hot = |key: &Key| at_work.is_some_and(|expert| keys::is_of_expert(key, expert));
        self.demote(|owned| owned.key.kind == Kind::SelfKv && !is_hot(&owned.key))
    }

    /// Parks the job: what it can compute again is given up, and everything else leaves the device, as far as the tiers below can
    /// take it. Entries come home as they are read, so the next unit resumes it. Bytes that it still owns on the device.
    pub fn park(&mut self) -> u64 {
        let phase = self.phase_to_save();
        self.go_on_with_prompts(phase);
        self.drop_recomputable();
        if self.parked.is_none() {
            let uses = self.job.entries().into_iter().map(|owned| (owned.key, owned.uses));
            self.parked = Some(uses.collect());
            // What is announced is brought home ahead of its read, which is not to come now.
            self.job.withdraw();
        }
        self.demote(|_| true);
        self.scratch = Scratch::default();
        if let Some(outputs) = self.outputs.as_ref().filter(|_| self.job.usage().bytes[Tier::Device] > 0) {
            // Pictures that wait take room below the device that the job's entries want now.
            outputs.drain();
            self.demote(|_| true);
        }
        self.job.usage().bytes[Tier::Device]
    }

    /// Announces again what a parked job reads.
    pub(crate) fn unpark(&mut self) {
        let Some(uses) = self.parked.take() else { return };
        let block = self.position().block;
        self.itinerary.announce(&self.model.blueprint, &self.spec, &self.job, block);
        // Reads of text and pages are announced with the blocks that read them.
        let own = uses.iter().filter(|(key, _)| matches!(key.kind, Kind::Latent | Kind::VaeFeature));
        for (key, uses) in own {
            uses.iter().for_each(|uses| self.job.announce(*key, *uses));
        }
    }

    /// Bytes that the job owns in each tier now: device, host, disk.
    #[must_use]
    pub fn held_bytes(&self) -> [u64; 3] {
        let held = self.job.usage();
        Tier::ALL.map(|tier| held.bytes[tier])
    }

    /// Stores pages of blocks that begin from now on in another codec; what is stored stays as it is (law 8). Changes the
    /// video. For videos that are made at once it does nothing.
    pub fn store_pages_as(&mut self, codec: KvCodec) {
        self.adapt.want_codec(codec);
    }

    /// Lets blocks from the next one on see at most so many of the frames before them; never more than the checkpoint
    /// says. Changes the video. Pages that no block will see any more are given up at once: between two blocks those beyond the
    /// new window; while a block is made it sees all that it began with, and its commits leave the new window. One that
    /// grows again fills up block by block. Bytes that came back.
    pub fn see_recent_frames(&mut self, frames: usize) -> u64 {
        let Some(rollout) = self.spec.rollout else { return 0 };
        let frames = frames.min(rollout.recent_frames);
        match self.phase_to_save() {
            Phase::Step { block, .. } | Phase::Commit { block, at: 0 } => {
                let frames_to_come = self.spec.block(block).frames.len();
                self.adapt.want_recent_frames(frames, Some(frames_to_come));
                0
            }
            // Those of one expert are there, and the other's pass reads its own; what is too much leaves after it.
            Phase::Commit { .. } => {
                self.adapt.want_recent_frames(frames, None);
                0
            }
            Phase::Prompt { .. }
            | Phase::Noise { .. }
            | Phase::LatentFrame { .. }
            | Phase::Close
            | Phase::Done => {
                self.adapt.want_recent_frames(frames, None);
                self.prune_unseen()
            }
        }
    }

    /// Ends pages beyond the window of the block after the one under way, which has made its passes. Their announced reads are
    /// forgotten when they are past. Bytes that came back.
    pub(crate) fn prune_unseen(&self) -> u64 {
        let Some(rollout) = self.spec.rollout else { return 0 };
        let keep = self.adapt.next_rollout(rollout).recent_frames;
        let keep = u32::try_from(keep).expect("a checkpoint names at most 1024");
        self.page_series().iter().map(|member| self.job.prune_old(member, keep).returned_bytes).sum()
    }

    /// A key of each series of pages that the job may have.
    pub(crate) fn page_series(&self) -> Vec<Key> {
        let mut series = Vec::new();
        for expert in [Component::HighNoise, Component::LowNoise] {
            for branch in [BranchName::Cond, BranchName::Uncond] {
                for layer in 0..self.model.expert(expert).config().layers {
                    series.push(keys::self_kv(expert, branch, layer, 0));
                    series.push(keys::newest_kv(expert, branch, layer, 0));
                }
            }
        }
        series
    }

    fn demote(&mut self, leaves: impl Fn(&Owned) -> bool) -> u64 {
        let before = self.job.usage().bytes[Tier::Device];
        // What is on its way may be on its way here.
        let is_there = |owned: &Owned| owned.tier == Tier::Device || owned.is_moving;
        for owned in self.job.entries().iter().filter(|owned| is_there(owned) && leaves(owned)) {
            // What finds no room below stays where it is.
            _ = self.job.demote_from(Tier::Device, &owned.key);
        }
        before.saturating_sub(self.job.usage().bytes[Tier::Device])
    }
}

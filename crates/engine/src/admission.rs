//! Whether a job can run at all within the budgets, before anything is computed.

use evanesce_cache::{Budgets, Disk, Job, Kind, Owned, Reservation, Tier, entry_bytes};
use evanesce_wan::weights::Component;

use crate::ahead::STAGED_READS;
use crate::blueprint::Blueprint;
use crate::decode;
use crate::error::{EngineError, Result};
use crate::model::Model;
use crate::request::JobSpec;
use crate::self_kv::KvCodec;
use crate::start;
use crate::text::workspace_bytes;

/// Latents that exist at once while a step is taken: the sample, the last sample and two predictions, and the three that
/// replace some of them.
const LATENTS_AT_ONCE: usize = 7;
const F32_BYTES: usize = size_of::<f32>();

/// The least that lets a job finish: one group of weights at a time and one that is read ahead, everything else of a stage
/// together, and of pages and given latents what the tiers below cannot take. [`Model::needs`] computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Before the first step: encoding a prompt.
    first_bytes: usize,
    /// Of a step or a latent frame, without pages.
    stage_bytes: usize,
    /// Beside any of these: the thread that reads weights ahead may be in the middle of one group whatever comes next.
    read_ahead_bytes: usize,
    pages: Pages,
    given: Given,
}

/// Latents of the frames that the video goes on from: all of them are there when its first block begins, and each leaves when it
/// is decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Given {
    /// While they are made, themselves aside.
    start_bytes: usize,
    all_bytes: usize,
    /// One latent frame.
    frame_bytes: usize,
}

/// Keys and values of earlier frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pages {
    /// All of them, and in one layer of one branch those of a new block beside those that they push out.
    all_bytes: usize,
    /// What the device holds at least: the pages that are read, those that arrive, and those of a new block.
    staged_bytes: usize,
    /// The largest page.
    page_bytes: usize,
    /// What moves at once: the frames of a block.
    group_pages: usize,
}

impl Needs {
    /// Computes them from shapes and the prompts' lengths.
    pub(crate) fn new(blueprint: &Blueprint, spec: &JobSpec, prompt_tokens: [usize; 2]) -> Self {
        let (height, width) = (spec.height / 8, spec.width / 8);
        let frames = spec.blocks().longest();
        let latent_numbers = blueprint.description.vae().z_dim() * frames * height * width;
        let latent_bytes = latent_numbers * F32_BYTES;
        let frame_tokens = (height / 2) * (width / 2);
        let branches = if spec.uses_guidance() { 2 } else { 1 };

        let experts = blueprint.experts();
        let step_workspace_bytes = over(experts, |c| step_workspace_bytes(blueprint, spec, c));
        let [cond, uncond] = prompt_tokens;
        let rows = cond.max(uncond) + 1;
        let config = blueprint.description.text();
        let text_workspace_bytes = workspace_bytes(blueprint, rows);
        let decode_workspace_bytes = decode::workspace_bytes(blueprint, spec);

        let embedding_bytes = 2 * rows * config.d_model * F32_BYTES;
        let cross_kv = |c| {
            let config = blueprint.expert(c).config();
            branches * config.layers * 2 * rows * config.dim() * F32_BYTES
        };
        let group = |component| blueprint.group_bytes(component).max().unwrap_or(0);
        let text = text_workspace_bytes + embedding_bytes + group(Component::TextEncoder);
        let given = Given::new(blueprint, spec, latent_bytes / frames, embedding_bytes);
        // Frames that a slot commits stand beside those they replace.
        let features = 2 * blueprint.decoder.slot_bytes(height, width);
        let cross_kv_bytes =
            if spec.rollout.is_some() { sum(experts, cross_kv) } else { over(experts, cross_kv) };
        // What stays from block to block, and so through the other stage: features while a block is denoised, text while
        // one is decoded.
        let stays = |bytes: usize| if spec.rollout.is_some() { bytes } else { 0 };
        let denoise = step_workspace_bytes
            + embedding_bytes
            + cross_kv_bytes
            + stays(features)
            + LATENTS_AT_ONCE * latent_bytes
            + over(experts, group);
        let decode = decode_workspace_bytes
            + latent_bytes
            + features
            + stays(embedding_bytes + cross_kv_bytes)
            + group(Component::VaeDecoder);
        let pages = Pages::new(blueprint, spec, frame_tokens);
        let read_ahead_bytes = if experts[0] == experts[1] { 0 } else { over(experts, group) };
        Self { first_bytes: text, stage_bytes: denoise.max(decode), read_ahead_bytes, pages, given }
    }

    /// The least bytes of the Device tier in which the job finishes without help from the tiers below: what to plan for before it starts.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        let at_start = self.given.start_bytes + self.given.all_bytes;
        let most = self.first_bytes.max(at_start).max(self.stage_bytes + self.waiting_bytes());
        (most + self.read_ahead_bytes) as u64
    }

    /// The least Device tier in which the job finishes beside tiers of these budgets.
    pub(crate) fn device_bytes_beside(&self, host_bytes: u64, disk: Option<&Disk>) -> u64 {
        let host_bytes = usize::try_from(host_bytes).unwrap_or(usize::MAX);
        let below = self.below_bytes(host_bytes, disk);
        // There are no pages yet, and each latent begins on the device.
        let latents_bytes = self.given.all_bytes.saturating_sub(below).max(self.given.frame_bytes);
        let at_start = self.given.start_bytes + latents_bytes;
        let on_device = self.waiting_bytes().saturating_sub(below).max(self.pages.staged_bytes);
        let most = self.first_bytes.max(at_start).max(self.stage_bytes + on_device);
        (most + self.read_ahead_bytes) as u64
    }

    /// What waits for its read and may wait below the device: pages and given latents.
    fn waiting_bytes(&self) -> usize {
        self.pages.all_bytes + self.given.all_bytes
    }

    /// The least bytes of the Device tier in which the job finishes where the disk alone takes what is not read at once, so that what
    /// others have in the host may stay. The same as [`Self::device_bytes`] where there is no disk.
    #[must_use]
    pub fn device_bytes_beside_disk(&self, disk: Option<&Disk>) -> u64 {
        self.device_bytes_beside(0, disk)
    }

    /// The least bytes of either tier in memory with which the job finishes beside this disk, the other one being as large as it is
    /// `beside` it. Of the device: where the tiers below take what is not read at once; fewer are never enough. Of the host: 0 where the
    /// job needs none, or the disk holds all that must wait.
    #[must_use]
    pub fn least(&self, beside: Budgets, disk: Option<&Disk>) -> Budgets {
        Budgets {
            device_bytes: self.device_bytes_beside(beside.host_bytes, disk),
            host_bytes: self.host_bytes_beside(beside.device_bytes, disk),
        }
    }

    /// The least Host tier beside which the job finishes in a device of this budget and beside that disk, if that is enough for what
    /// must be there: room for the pages and given latents that find none on the device or the disk, and for two groups on their way.
    pub(crate) fn host_bytes_beside(&self, device_bytes: u64, disk: Option<&Disk>) -> u64 {
        let on_disk = disk.map_or(0, |disk| self.disk_holds(disk));
        match self.beyond_device_bytes(device_bytes).saturating_sub(on_disk) {
            0 => 0,
            below => {
                let pieces = below.div_ceil(self.piece_bytes()) + 2 * self.pages.group_pages;
                pieces.saturating_mul(self.piece_bytes()) as u64
            }
        }
    }

    /// Bytes of this disk that are left to others by a job that has a device of this budget and nothing in the host; 0 where there is
    /// no disk, or it cannot hold all that must wait.
    #[must_use]
    pub fn disk_spare_bytes(&self, device_bytes: u64, disk: Option<&Disk>) -> u64 {
        let on_disk = disk.map_or(0, |disk| self.disk_holds(disk));
        on_disk.saturating_sub(self.beyond_device_bytes(device_bytes)) as u64
    }

    /// Bytes of what waits that find no room on a device of this budget.
    fn beyond_device_bytes(&self, device_bytes: u64) -> usize {
        let device_bytes = usize::try_from(device_bytes).unwrap_or(usize::MAX);
        let device_bytes = device_bytes.saturating_sub(self.read_ahead_bytes);
        let beyond = |all: usize, besides: usize| all.saturating_sub(device_bytes.saturating_sub(besides));
        let at_start = beyond(self.given.all_bytes, self.given.start_bytes);
        beyond(self.waiting_bytes(), self.stage_bytes).max(at_start)
    }

    /// The largest of what waits.
    fn piece_bytes(&self) -> usize {
        self.pages.page_bytes.max(self.given.frame_bytes)
    }

    /// Bytes of what waits that host and disk can take. Each keeps room for two groups: one that comes down while another one
    /// has not left yet. What a host without that room cannot take goes to the disk at once, and comes back from there.
    fn below_bytes(&self, host_bytes: usize, disk: Option<&Disk>) -> usize {
        let (piece_bytes, slack_pieces) = (self.piece_bytes(), 2 * self.pages.group_pages);
        let Some(host_pieces) = host_bytes.checked_div(piece_bytes) else { return 0 };
        let host_holds = host_pieces.saturating_sub(slack_pieces).saturating_mul(piece_bytes);
        host_holds.saturating_add(disk.map_or(0, |disk| self.disk_holds(disk)))
    }

    /// Bytes of what waits that this disk can take, beside two groups on their way.
    fn disk_holds(&self, disk: &Disk) -> usize {
        let slack_pieces = 2 * self.pages.group_pages as u64;
        let slack_bytes = disk.entry_bytes(self.piece_bytes()).saturating_mul(slack_pieces);
        let room_bytes = disk.budget_bytes().saturating_sub(slack_bytes);
        // A record is longer than what it holds, a small one by more of its length.
        let held_bytes = |bytes: usize| {
            let pieces = room_bytes / disk.entry_bytes(bytes).max(1);
            usize::try_from(pieces).unwrap_or(usize::MAX).saturating_mul(bytes)
        };
        let sizes = [self.pages.page_bytes, self.given.frame_bytes].into_iter().filter(|size| *size > 0);
        sizes.map(held_bytes).min().unwrap_or(0)
    }

    /// All pages of keys and values that the job keeps at once, in the device's bytes.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.pages.all_bytes as u64
    }

    /// Refuses a job that could not finish.
    ///
    /// # Errors
    /// [`EngineError::Budget`], with the least that would do beside the other tiers' budgets.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        let budget = |tier| model.counters().tier(tier).budget_bytes;
        let needed = self.device_bytes_beside(budget(Tier::Host), model.cache().disk());
        if budget(Tier::Device) < needed {
            let [budget_bytes, needed_bytes] =
                [budget(Tier::Device), needed].map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
            return Err(EngineError::Budget { tier: Tier::Device.as_str(), budget_bytes, needed_bytes });
        }
        Ok(())
    }
}

/// Room below the device for a job's bytes outside the cache, as long as nothing must leave for them, nor will have to for pages
/// that admission found room for there.
pub(crate) fn spare_room(model: &Model, job: &Job, needs: &Needs, bytes: u64) -> Option<Reservation> {
    let counters = model.counters();
    let [device, host] = [Tier::Device, Tier::Host].map(|tier| counters.tier(tier));
    let promised = needs.host_bytes_beside(device.budget_bytes, None).min(host.budget_bytes);
    let has_given = needs.given.all_bytes > 0;
    let waits = |kind: Kind| kind == Kind::SelfKv || (has_given && kind == Kind::Latent);
    let waits_there = |owned: &Owned| waits(owned.key.kind) && owned.tier == Tier::Host;
    let waiting = job.entries().into_iter().filter(waits_there);
    let come: u64 = waiting.map(|owned| entry_bytes(owned.len_bytes)).sum();
    let still_to_come = promised.saturating_sub(come);
    let spare_bytes = host.budget_bytes.saturating_sub(host.used_bytes).saturating_sub(still_to_come);
    (spare_bytes >= bytes).then(|| job.reserve(&[(Tier::Host, bytes)]).ok()).flatten()
}

impl Pages {
    /// Pages of both experts, kept from block to block.
    fn new(blueprint: &Blueprint, spec: &JobSpec, frame_tokens: usize) -> Self {
        let Some(rollout) = spec.rollout else { return Self::default() };
        let experts = blueprint.experts();
        let owners = experts.map(|expert| blueprint.context_of(rollout, expert));
        let branches = if spec.uses_guidance() { 2 } else { 1 };
        // The last block leaves no pages.
        let committed = spec.block(spec.n_blocks() - 1).frames.start;
        let frames = committed.min(rollout.sink_frames + rollout.recent_frames);
        let sinks = committed.min(rollout.sink_frames);
        let group_pages = spec.blocks().longest_committed();
        let bytes_of = |c, codec: KvCodec| {
            let bytes = codec.page_bytes(frame_tokens, blueprint.expert(c).config().dim());
            usize::try_from(entry_bytes(bytes)).unwrap_or(usize::MAX)
        };
        let page_bytes = |c, layer, frame| bytes_of(c, spec.page_codecs().page_codec(c, layer, frame));
        // Second pages of the newest frames stand beside the first ones.
        let newest = spec.page_codecs().newest_codec(rollout.sink_frames);
        let newest_bytes = |c| newest.map_or(0, |codec| bytes_of(c, codec));
        // The first frame is one of the sink if there is any, the one behind the sink is not.
        let largest =
            |c, layer| page_bytes(c, layer, 0).max(page_bytes(c, layer, sinks)).max(newest_bytes(c));
        let read = |c, layer| {
            sinks * page_bytes(c, layer, 0)
                + (frames - sinks) * page_bytes(c, layer, sinks)
                + group_pages * newest_bytes(c)
        };
        let written_pages = group_pages * if newest.is_some() { 2 } else { 1 };
        let layers = |c| 0..blueprint.expert(c).config().layers;
        let most = |c, bytes: &dyn Fn(usize) -> usize| layers(c).map(bytes).max().unwrap_or(0);
        let arriving = over(owners, |c| most(c, &|layer| written_pages * largest(c, layer)));
        let all_bytes = sum(owners, |c| layers(c).map(|layer| branches * read(c, layer)).sum()) + arriving;
        let staged = over(owners, |c| most(c, &|layer| STAGED_READS * read(c, layer)));
        let staged_bytes = all_bytes.min(staged + arriving);
        let page_bytes = over(owners, |c| most(c, &|layer| largest(c, layer)));
        Self { all_bytes, staged_bytes, page_bytes, group_pages: written_pages }
    }
}

impl Given {
    /// Latents of `frame_bytes` each, made beside embeddings of `embedding_bytes`.
    fn new(blueprint: &Blueprint, spec: &JobSpec, frame_bytes: usize, embedding_bytes: usize) -> Self {
        let frames = spec.frames_given();
        if frames == 0 {
            return Self::default();
        }
        let group_bytes = blueprint.group_bytes(Component::VaeEncoder).max().unwrap_or(0);
        let start_bytes = start::workspace_bytes(blueprint, spec) + embedding_bytes + group_bytes;
        let frame_bytes = usize::try_from(entry_bytes(frame_bytes)).unwrap_or(usize::MAX);
        Self { start_bytes, all_bytes: frames.saturating_mul(frame_bytes), frame_bytes }
    }
}

/// What one pass of a block through an expert takes beyond entries and weights, at most.
pub(crate) fn step_workspace_bytes(blueprint: &Blueprint, spec: &JobSpec, expert: Component) -> usize {
    let frames = spec.blocks().longest();
    pass_workspace_bytes(blueprint, spec, expert, frames)
}

/// As [`step_workspace_bytes`] for a block of `frames` latent frames.
pub(crate) fn pass_workspace_bytes(
    blueprint: &Blueprint,
    spec: &JobSpec,
    expert: Component,
    frames: usize,
) -> usize {
    let (height, width) = (spec.height / 8, spec.width / 8);
    let channels = blueprint.description.vae().z_dim();
    let latent_bytes = channels * frames * height * width * F32_BYTES;
    let tokens = frames * (height / 2) * (width / 2);
    let branches = spec.branches(expert).len();
    let turned_bytes = blueprint.description.turned_bytes(blueprint.serving(expert));
    blueprint.expert(expert).workspace_bytes(tokens, branches) + 2 * latent_bytes + turned_bytes
}

fn over(components: [Component; 2], bytes: impl Fn(Component) -> usize) -> usize {
    components.map(bytes).into_iter().max().unwrap_or(0)
}

/// Over both experts, or over the only one.
fn sum([high, low]: [Component; 2], bytes: impl Fn(Component) -> usize) -> usize {
    if high == low { bytes(high) } else { bytes(high) + bytes(low) }
}

#[cfg(test)]
mod tests {
    use evanesce_cache::{Cache, Key, Lifetime};
    use evanesce_wan::text::TOKENS_MAX;
    use evanesce_wan::weights::GroupId;

    use super::*;
    use crate::request::{Request, RequestedLength};

    /// Sixteen pages of one line, two of which move at once.
    const PAGES: Pages = Pages { all_bytes: 16 * 64, staged_bytes: 2 * 64, page_bytes: 64, group_pages: 2 };
    /// Nine latents of two lines.
    const GIVEN: Given = Given { start_bytes: 1100, all_bytes: 9 * 128, frame_bytes: 128 };
    const NEEDS: Needs =
        Needs { first_bytes: 0, stage_bytes: 900, read_ahead_bytes: 100, pages: PAGES, given: GIVEN };
    /// Sixteen records of a block each: four are on their way, and twelve hold a page at least.
    const DISK_BYTES: u64 = 64 << 10;
    const DISK_HOLDS_BYTES: u64 = 12 * 64;

    #[test]
    fn given_latents_that_are_larger_than_pages_may_wait_on_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::open(directory.path(), DISK_BYTES).unwrap();
        let least = NEEDS.device_bytes() - DISK_HOLDS_BYTES;
        assert_eq!(NEEDS.device_bytes_beside_disk(Some(&disk)), least);
        assert_eq!(NEEDS.device_bytes_beside_disk(None), NEEDS.device_bytes());
    }

    #[test]
    fn the_least_host_is_the_one_beside_which_a_device_is_enough() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::open(directory.path(), DISK_BYTES).unwrap();
        let both = |given: Given| [(given, None), (given, Some(&disk))];
        for (given, disk) in [Given::default(), GIVEN].into_iter().flat_map(both) {
            let needs = Needs { given, ..NEEDS };
            // What the disk holds needs no host.
            let alone = needs.device_bytes() - if disk.is_some() { DISK_HOLDS_BYTES } else { 0 };
            assert_eq!(needs.device_bytes_beside(0, disk), alone);
            assert_eq!([alone, alone + 1].map(|bytes| needs.host_bytes_beside(bytes, disk)), [0; 2]);
            let spare = [alone - 1, alone, alone + 10].map(|bytes| needs.disk_spare_bytes(bytes, disk));
            assert_eq!(spare, if disk.is_some() { [0, 0, 10] } else { [0; 3] });
            for device_bytes in [1400, 1500, 1900, alone - 1].into_iter().filter(|bytes| *bytes < alone) {
                let host_bytes = needs.host_bytes_beside(device_bytes, disk);
                assert!(needs.device_bytes_beside(host_bytes, disk) <= device_bytes, "{device_bytes}");
                assert!(needs.device_bytes_beside(host_bytes - 1, disk) > device_bytes, "{device_bytes}");
                let least = needs.least(Budgets { device_bytes, host_bytes }, disk);
                assert!(least.device_bytes <= device_bytes && least.host_bytes == host_bytes, "{least:?}");
            }
        }
    }

    #[test]
    fn where_a_prompt_decides_it_is_encoded_beside_a_group_that_is_still_being_read_ahead() {
        let model = Model::golden(Budgets { device_bytes: 0, host_bytes: 0 });
        let request = Request {
            size: Some((48, 32)),
            length: Some(RequestedLength::Frames(9)),
            ..Request::new("a red ball", 1)
        };
        let spec = JobSpec::new(request, model.checkpoint()).unwrap();
        let blueprint = &*model.blueprint;
        let needs = Needs::new(blueprint, &spec, [TOKENS_MAX; 2]);
        assert!(needs.first_bytes > needs.stage_bytes, "{needs:?}");
        let group_bytes = |component| blueprint.group_bytes(component).max().unwrap();
        // What it was asked for, and what whole lines take beyond that.
        let budgets = Budgets { device_bytes: needs.device_bytes() + 64, host_bytes: 0 };
        let cache = Cache::counting(budgets, 0);
        let put = |component, len_bytes| {
            cache.shared_put(blueprint.weights_key(GroupId { component, index: 0 }), Tier::Device, len_bytes)
        };
        let expert_bytes = group_bytes(Component::HighNoise).max(group_bytes(Component::LowNoise));
        let _read_ahead = put(Component::HighNoise, expert_bytes).unwrap();
        let text_bytes = group_bytes(Component::TextEncoder);
        let besides_bytes = (needs.first_bytes - text_bytes) as u64;
        let _besides = cache.reserve(&[(Tier::Device, besides_bytes)]).unwrap();
        assert!(put(Component::TextEncoder, text_bytes).is_ok());
    }

    #[test]
    fn what_is_spare_leaves_room_for_pages_that_are_still_to_come() {
        const HOST_BYTES: u64 = 6400;
        let model = Model::golden(Budgets { device_bytes: 1 << 20, host_bytes: HOST_BYTES });
        let below = Needs { stage_bytes: 1 << 20, read_ahead_bytes: 0, given: Given::default(), ..NEEDS };
        let in_device = Needs { stage_bytes: 0, ..below };
        let job = model.cache.open_job();
        let is_spare = |needs: &Needs, bytes| spare_room(&model, &job, needs, bytes).is_some();
        assert!(is_spare(&in_device, HOST_BYTES) && !is_spare(&in_device, HOST_BYTES + 1));
        let spare_bytes = HOST_BYTES - (16 + 2 * 2) * 64;
        assert!(is_spare(&below, spare_bytes) && !is_spare(&below, spare_bytes + 1));
        // What else the job has there is no page that has come: pictures that wait, and a latent.
        let _pictures = spare_room(&model, &job, &below, 640).unwrap();
        drop(job.put(Key::new(Kind::Latent), Tier::Host, Lifetime::Job, 64).unwrap().commit().unwrap());
        let spare_bytes = spare_bytes - 640 - 64;
        assert!(is_spare(&below, spare_bytes) && !is_spare(&below, spare_bytes + 1));
        for frame in 0..16 {
            let key = Key::new(Kind::SelfKv).frame(frame);
            drop(job.put(key, Tier::Host, Lifetime::Job, 64).unwrap().commit().unwrap());
        }
        // Pages that have come are still to come no more.
        assert!(is_spare(&below, spare_bytes) && !is_spare(&below, spare_bytes + 1));
    }
}

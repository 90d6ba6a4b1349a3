//! Keys and values on their way home, of the text and of earlier frames: asked for before their layer reads them, brought by a
//! thread of their own.
//!
//! While layer l computes, the pages of the layers behind it arrive. What is under way and what arrives are the two
//! staging buffers of a device that cannot hold all pages: admission keeps room for both.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use evanesce_cache::{Fetcher, Job, Key};
use evanesce_wan::checkpoint::Rollout;
use evanesce_wan::weights::Component;

use crate::adapt::Adapt;
use crate::blocks::reach;
use crate::blueprint::Blueprint;
use crate::error::EngineError;
use crate::features;
use crate::itinerary::Itinerary;
use crate::keys;
use crate::model::Model;
use crate::request::JobSpec;

/// Layers of pages that are asked for ahead of the one that computes.
pub(crate) const LAYERS_AHEAD: usize = 2;
/// Requests that may wait: layers, which are asked for again by the next layer when one is dropped, and what the decoder
/// reads next.
const QUEUE_REQUESTS: usize = 8;
/// Reads whose pages the device holds at once at least, each of one layer and branch: the one under way and the one that
/// arrives.
pub(crate) const STAGED_READS: usize = 2;

/// Entries to bring, in the order in which they are read: the pages of a layer, the kept frames of the decoder.
struct Wanted {
    fetcher: Fetcher,
    keys: Vec<Key>,
}

/// The thread that brings pages home.
#[derive(Debug)]
pub(crate) struct Porter {
    /// `None` only while being dropped.
    wanted: Option<SyncSender<Wanted>>,
    thread: Option<JoinHandle<()>>,
}

impl Porter {
    pub(crate) fn new() -> Result<Self, EngineError> {
        let (sender, receiver) = sync_channel(QUEUE_REQUESTS);
        let thread =
            std::thread::Builder::new().name("pages".to_owned()).spawn(move || serve(&receiver)).map_err(
                |error| EngineError::Cache(format!("cannot start the thread that brings pages: {error}")),
            )?;
        Ok(Self { wanted: Some(sender), thread: Some(thread) })
    }

    /// Asks for entries of a job, in the order in which they are read.
    pub(crate) fn request(&self, fetcher: Fetcher, keys: Vec<Key>) {
        if let Some(sender) = &self.wanted {
            // A full queue drops the request: see QUEUE_REQUESTS.
            _ = sender.try_send(Wanted { fetcher, keys });
        }
    }
}

impl Drop for Porter {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(wanted: &Receiver<Wanted>) {
    while let Ok(Wanted { fetcher, keys }) = wanted.recv() {
        for key in keys {
            // One that does not come is brought by the read itself, which says what is wrong.
            fetcher.prefetch(&key);
        }
    }
}

/// What a layer of a pass reads that may have left the device, in the order in which it does: keys and values of the text for
/// both branches, then pages of earlier frames for one branch after the other.
pub(crate) fn read_by_layer(
    blueprint: &Blueprint,
    spec: &JobSpec,
    rollout: Rollout,
    (expert, block, layer): (Component, usize, usize),
) -> Vec<Key> {
    let frames = reach(rollout, spec.block(block).frames.start).frames;
    let owner = blueprint.context_of(rollout, expert);
    let codecs = spec.page_codecs();
    let branches = spec.branches(expert);
    let text = branches.iter().map(|branch| keys::cross_kv(expert, *branch, layer));
    let pages = branches.iter().flat_map(|branch| {
        frames.iter().map(move |frame| codecs.page_read((owner, *branch), layer, *frame, block).0)
    });
    text.chain(pages).collect()
}

/// Whether the decoder's kept frames are asked for at a layer of a pass: in the last layers of a block's last pass, as many as
/// pages are asked for ahead. They may have made room for pages. Each of these layers asks, since a full queue drops requests.
pub(crate) fn asks_for_features(
    itinerary: &Itinerary,
    (block, pass): (usize, usize),
    (layer, layers): (usize, usize),
) -> bool {
    pass + 1 == itinerary.passes_of(block) && layer + LAYERS_AHEAD >= layers
}

/// A pass of a block, as the pages of what comes after it are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead<'a> {
    pub(crate) model: &'a Model,
    pub(crate) spec: &'a JobSpec,
    pub(crate) job: &'a Job,
    pub(crate) itinerary: &'a Itinerary,
    pub(crate) adapt: &'a Adapt,
    /// Whether `block` is the one after the block under way.
    pub(crate) is_next_block: bool,
    pub(crate) block: usize,
    /// Its number in the block: a step, or a commit.
    pub(crate) pass: usize,
}

impl Ahead<'_> {
    /// Asks for the pages of the layers behind `layer`, in this pass and the next, and for what the decoder reads when the last
    /// pass of a block ends.
    pub(crate) fn request_behind(&self, layer: usize) {
        let layers = self.layers();
        if asks_for_features(self.itinerary, (self.block, self.pass), (layer, layers)) {
            let first = self.spec.block(self.block).frames.start;
            let keys = features::read_by(&self.model.blueprint.decoder, self.spec, first);
            self.model.porter.request(self.job.fetcher(), keys);
        }
        for next in layer + 1..=layer + LAYERS_AHEAD {
            match next.checked_sub(layers) {
                None => self.request(next),
                Some(next) => {
                    if let Some(following) = self.following() {
                        following.request(next);
                    }
                }
            }
        }
    }

    /// Asks for the pages of the first layers of this pass.
    pub(crate) fn request_first(&self) {
        (0..LAYERS_AHEAD).for_each(|layer| self.request(layer));
    }

    fn layers(&self) -> usize {
        self.model.expert(self.itinerary.passing(self.pass)).config().layers
    }

    fn following(&self) -> Option<Self> {
        if self.pass + 1 < self.itinerary.passes_of(self.block) {
            return Some(Self { pass: self.pass + 1, ..*self });
        }
        let next = Self { pass: 0, block: self.block + 1, is_next_block: true, ..*self };
        (next.block < self.spec.n_blocks()).then_some(next)
    }

    fn request(&self, layer: usize) {
        let Some(rollout) = self.spec.rollout.filter(|_| layer < self.layers()) else { return };
        let rollout =
            if self.is_next_block { self.adapt.next_rollout(rollout) } else { self.adapt.rollout(rollout) };
        let at = (self.itinerary.passing(self.pass), self.block, layer);
        let keys = read_by_layer(&self.model.blueprint, self.spec, rollout, at);
        self.model.porter.request(self.job.fetcher(), keys);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use evanesce_cache::{Budgets, Lifetime, PutSpec, Tier, Uses};
    use evanesce_wan::checkpoint::{Context, ContextSample, Positions};

    use super::*;
    use crate::keys::BranchName;
    use crate::request::{Request, RequestedLength};

    const BUDGETS: Budgets = Budgets { device_bytes: 1 << 30, host_bytes: 1 << 30 };
    const ROLLOUT: Rollout = Rollout {
        block_frames: 3,
        first_block_frames: 3,
        sink_frames: 2,
        recent_frames: 3,
        positions: Positions::Window,
        context: Context::PerExpert,
        context_sample: ContextSample::X0,
    };

    /// Three blocks of two steps on each expert; the first two end with a commit through the low-noise expert and one through
    /// the other.
    fn spec(model: &Model) -> JobSpec {
        let request = Request {
            size: Some((48, 32)),
            length: Some(RequestedLength::Frames(33)),
            steps: Some(4),
            guidance_high: Some(4.0),
            guidance_low: Some(3.0),
            shift: Some(5.0),
            ..Request::new("a red ball", 1)
        };
        JobSpec { rollout: Some(ROLLOUT), ..JobSpec::new(request, model.checkpoint()).unwrap() }
    }

    /// Keys and values of the text in some layers, for both branches.
    fn text(expert: Component, layers: Range<usize>) -> Vec<Key> {
        let of_layer = |layer| {
            [BranchName::Cond, BranchName::Uncond].map(|branch| keys::cross_kv(expert, branch, layer))
        };
        layers.flat_map(of_layer).collect()
    }

    /// With all text and the kept frames that the decoder reads after `block` in the host: what is in the device once a pass has
    /// gone through its layers and all that it asked for has come, by key; and those kept frames.
    fn brought_by(block: usize, pass: usize) -> (Vec<Key>, Vec<Key>) {
        let model = Model::golden(BUDGETS);
        let spec = spec(&model);
        let (itinerary, adapt) = (Itinerary::new(&model.blueprint, &spec), Adapt::new(&spec));
        let job = model.cache.open_job();
        itinerary.announce(&model.blueprint, &spec, &job, block);
        let first = spec.block(block).frames.start;
        let kept = features::read_by(&model.blueprint.decoder, &spec, first);
        for key in &kept {
            job.announce(*key, Uses::once(itinerary.end_of_latent_frame(first)));
        }
        let [high, low] = [Component::HighNoise, Component::LowNoise].map(|expert| text(expert, 0..2));
        for key in high.iter().chain(&low).chain(&kept) {
            let put = PutSpec::new(Tier::Device, Lifetime::Job, 64);
            drop(job.put_with(*key, put).unwrap().commit().unwrap());
            assert_eq!(job.demote(key), Ok(Some(Tier::Host)));
        }
        let ahead = Ahead {
            model: &model,
            spec: &spec,
            job: &job,
            itinerary: &itinerary,
            adapt: &adapt,
            is_next_block: false,
            block,
            pass,
        };
        (0..2).for_each(|layer| ahead.request_behind(layer));
        // Its thread ends when it has brought what it was asked for.
        drop(model);
        let home = job.entries().into_iter().filter(|owned| owned.tier == Tier::Device);
        (home.map(|owned| owned.key).collect(), kept)
    }

    #[test]
    fn text_is_asked_for_with_its_layer_and_kept_frames_as_a_block_ends() {
        let [high, low] = [Component::HighNoise, Component::LowNoise];
        // The first layer of a pass was asked for by the pass before it; nothing follows the last one.
        for (block, pass, mut expected, ends_block) in [
            (0, 1, [text(high, 1..2), text(low, 0..2)].concat(), false),
            (1, 1, [text(high, 1..2), text(low, 0..2)].concat(), false),
            (1, 4, [text(low, 1..2), text(high, 0..2)].concat(), false),
            (1, 5, text(high, 0..2), true),
            (2, 3, text(low, 1..2), true),
        ] {
            let (brought, kept) = brought_by(block, pass);
            assert_eq!(kept.is_empty(), block == 0, "what the decoder has kept before block {block}");
            expected.extend(kept.into_iter().filter(|_| ends_block));
            expected.sort_unstable();
            assert_eq!(brought, expected, "pass {pass} of block {block}");
        }
    }

    #[test]
    fn kept_frames_are_asked_for_in_each_of_the_last_layers_of_a_block_and_nowhere_else() {
        let model = Model::golden(BUDGETS);
        let spec = spec(&model);
        let itinerary = Itinerary::new(&model.blueprint, &spec);
        let asking = |block, pass| {
            let asks = |layer: &usize| asks_for_features(&itinerary, (block, pass), (*layer, 5));
            (0..5).filter(asks).collect::<Vec<_>>()
        };
        assert_eq!([asking(0, 5), asking(2, 3)], [[3, 4]; 2]);
        assert_eq!([asking(0, 4), asking(2, 2)], [[0; 0]; 2]);
    }
}

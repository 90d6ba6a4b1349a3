//! What the entries of a job are called.

use evanesce_cache::{ContentKey, Key, Kind};
use evanesce_wan::vae::SlotId;
use evanesce_wan::weights::{Component, GroupId};

/// The forward passes of classifier-free guidance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BranchName {
    /// With the prompt.
    Cond,
    /// With the negative prompt.
    Uncond,
}

/// What a `Latent` entry is, among those of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LatentRole {
    /// The sample between two steps.
    Sample,
    /// The sampler's prediction of the clean sample, made at one step.
    Prediction,
    /// The sample that the sampler corrected last.
    LastSample,
    /// A frame of the final sample.
    Final,
}

/// Frames, steps, layers and groups are far fewer than 2^32; admission refuses more.
fn number(n: usize) -> u32 {
    u32::try_from(n).expect("frames, steps, layers and groups are bounded at admission")
}

/// A latent of `role`; `number` is the step it was made at, or the latent frame.
pub(crate) fn latent(role: LatentRole, at: usize) -> Key {
    Key::new(Kind::Latent).part(role as u32).frame(number(at))
}

/// Keys and values of cross-attention of one layer.
pub(crate) fn cross_kv(expert: Component, branch: BranchName, layer: usize) -> Key {
    let expert = u32::from(expert == Component::LowNoise);
    Key::new(Kind::CrossKv).part(expert * 2 + branch as u32).index(number(layer))
}

/// Keys and values of self-attention of one latent frame in one layer.
pub(crate) fn self_kv(expert: Component, branch: BranchName, layer: usize, frame: usize) -> Key {
    let expert = u32::from(expert == Component::LowNoise);
    Key::new(Kind::SelfKv).part(expert * 2 + branch as u32).index(number(layer)).frame(number(frame))
}

/// As [`self_kv`] in the codec of the newest pages: read by the next block alone.
pub(crate) fn newest_kv(expert: Component, branch: BranchName, layer: usize, frame: usize) -> Key {
    let expert = u32::from(expert == Component::LowNoise);
    Key::new(Kind::SelfKv).part(4 + expert * 2 + branch as u32).index(number(layer)).frame(number(frame))
}

/// Whether a page of keys and values is of this expert.
pub(crate) fn is_of_expert(key: &Key, expert: Component) -> bool {
    key.part % 4 / 2 == u32::from(expert == Component::LowNoise)
}

/// What a `Latent` entry is.
pub(crate) fn role_of(key: &Key) -> Option<LatentRole> {
    use LatentRole::{Final, LastSample, Prediction, Sample};
    [Sample, Prediction, LastSample, Final].into_iter().find(|role| *role as u32 == key.part)
}

/// Whose keys and values an entry is, of the text or of a frame.
pub(crate) fn owner_of(key: &Key) -> Option<(Component, BranchName)> {
    let is_low = is_of_expert(key, Component::LowNoise);
    let expert = if is_low { Component::LowNoise } else { Component::HighNoise };
    let branch = if key.part.is_multiple_of(2) { BranchName::Cond } else { BranchName::Uncond };
    (key.part < 8).then_some((expert, branch))
}

/// Whether a page is the second one of its frame: see [`newest_kv`].
pub(crate) fn is_newest(key: &Key) -> bool {
    key.part / 4 == 1
}

/// One kept frame of one convolution.
pub(crate) fn feature(slot: SlotId, frame_index: u64) -> Key {
    let frame = u32::try_from(frame_index).expect("a video has fewer than 2^32 frames");
    Key::new(Kind::VaeFeature).index(slot.code()).frame(frame)
}

/// One group of weights of one checkpoint.
pub(crate) fn weights(fingerprint: &[u8], id: GroupId) -> ContentKey {
    let place = [id.component as u32, number(id.index)].map(u32::to_le_bytes).concat();
    ContentKey::of(Kind::Weights, &[fingerprint, &place])
}

/// The embedding of some tokens by one text encoder, as this version computes it: it may be kept for longer than the program
/// runs.
pub(crate) fn embedding(fingerprint: &[u8], ids: &[u32]) -> ContentKey {
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    ContentKey::of(Kind::TextEmbedding, &[fingerprint, bytemuck::cast_slice(ids), version])
}

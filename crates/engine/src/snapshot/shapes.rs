//! How long the entries of a job are, by their keys: what a snapshot brings back is read as numbers of these shapes.

use std::collections::{BTreeMap, BTreeSet};

use evanesce_cache::{Key, Kind, Lifetime};

use super::SnapshotError;
use super::manifest::{Saved, damaged};
use crate::adapt::Adapt;
use crate::blueprint::Blueprint;
use crate::cross_kv;
use crate::error::Result;
use crate::keys::{self, LatentRole};
use crate::request::JobSpec;
use crate::run::JobRun;

/// What decides the length of an entry of a job, where it stands.
#[derive(Debug)]
pub(super) struct Shapes<'a> {
    blueprint: &'a Blueprint,
    spec: &'a JobSpec,
    adapt: &'a Adapt,
    /// Of the prompt and the negative one.
    prompt_tokens: [usize; 2],
    /// Of a latent frame, and how many of them the block under way has.
    frame_bytes: usize,
    block_frames: usize,
    /// Of a frame that a convolution of the VAE keeps, by its slot.
    feature_bytes: BTreeMap<u32, usize>,
}

impl<'a> Shapes<'a> {
    /// Those of a job that stands where its snapshot was taken.
    pub(super) fn of(run: &'a JobRun<'_>) -> Result<Self> {
        let (model, spec) = (run.model, &run.spec);
        let (height, width) = (spec.height / 8, spec.width / 8);
        let numbers = model.blueprint.description.vae().z_dim() * height * width;
        let slots = model.blueprint.decoder.slot_uses(0, height, width).into_iter();
        Ok(Self {
            blueprint: &model.blueprint,
            spec,
            adapt: &run.adapt,
            prompt_tokens: model.prompt_tokens(spec)?,
            frame_bytes: numbers * size_of::<f32>(),
            block_frames: spec.block(run.position().block).frames.len(),
            feature_bytes: slots.map(|slot| (slot.slot.code(), slot.frame_bytes)).collect(),
        })
    }

    /// Refuses what the job would not have made.
    pub(super) fn check(&self, entries: &[Saved]) -> std::result::Result<(), SnapshotError> {
        let mut seen = BTreeSet::new();
        for saved in entries {
            let (key, len_bytes) = (saved.key()?, saved.bytes.len_bytes);
            let expected_bytes = self.len_bytes(&key).map(|len_bytes| len_bytes as u64);
            let lives = saved.lifetime() != Lifetime::Steps(0);
            if expected_bytes != Some(len_bytes) || !lives || !seen.insert(key) {
                return Err(damaged(format!("{key} of {len_bytes} bytes is no entry of this job")));
            }
        }
        Ok(())
    }

    /// Bytes of the entry of this key; `None` when a job has no such entry.
    fn len_bytes(&self, key: &Key) -> Option<usize> {
        match key.kind {
            Kind::Latent => self.latent_bytes(key),
            Kind::CrossKv => self.text_bytes(key),
            Kind::SelfKv => self.page_bytes(key),
            Kind::VaeFeature => self.feature_bytes.get(&key.index).copied().filter(|_| key.part == 0),
            Kind::TextEmbedding | Kind::StepResidual | Kind::Weights => None,
        }
    }

    fn latent_bytes(&self, key: &Key) -> Option<usize> {
        let at = key.frame as usize;
        match keys::role_of(key).filter(|_| key.index == 0)? {
            LatentRole::Final => (at < self.spec.denoised_frames()).then_some(self.frame_bytes),
            LatentRole::Sample | LatentRole::Prediction | LatentRole::LastSample => {
                (at < self.spec.steps()).then_some(self.frame_bytes * self.block_frames)
            }
        }
    }

    fn text_bytes(&self, key: &Key) -> Option<usize> {
        let (expert, branch) = keys::owner_of(key).filter(|_| key.frame == 0 && !keys::is_newest(key))?;
        let config = self.blueprint.expert(expert).config();
        let tokens = self.prompt_tokens[branch as usize];
        ((key.index as usize) < config.layers).then(|| cross_kv::page_bytes(tokens, config.dim()))
    }

    fn page_bytes(&self, key: &Key) -> Option<usize> {
        self.spec.rollout?;
        let (expert, _) = keys::owner_of(key)?;
        let (layer, frame) = (key.index as usize, key.frame as usize);
        let codecs = self.spec.page_codecs();
        let own = if keys::is_newest(key) {
            codecs.newest_codec(frame)?
        } else {
            codecs.page_codec(expert, layer, frame)
        };
        let codec = self.adapt.smaller(own, self.spec.block_of(frame));
        let config = self.blueprint.expert(expert).config();
        let tokens = (self.spec.height / 16) * (self.spec.width / 16);
        let is_there = layer < config.layers && frame < self.spec.denoised_frames();
        is_there.then(|| codec.page_bytes(tokens, config.dim()))
    }
}

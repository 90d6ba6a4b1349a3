//! What a checkpoint holds, for whoever looks at it from outside.

use std::path::Path;

use evanesce_wan::checkpoint::{Checkpoint, HeldWeights};
use evanesce_wan::weights::{Component, GroupId};

use crate::error::Result;

/// A checkpoint that was read through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelContents {
    /// Its components.
    pub parts: Vec<PartContents>,
}

/// One component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartContents {
    /// What it is.
    pub name: &'static str,
    /// Groups that are resident or not.
    pub groups: usize,
    /// Bytes of all groups, in the types that the checkpoint stores.
    pub bytes: u64,
    /// The same where matrices of experts are held in bfloat16.
    pub bf16_bytes: u64,
    /// Its identity among shared entries, in hexadecimal.
    pub fingerprint: String,
}

impl ModelContents {
    /// Opens a checkpoint, which checks names, shapes and places, and reads every group.
    ///
    /// # Errors
    /// What is missing, misshapen, cut short or unreadable, in one sentence.
    pub fn read(directory: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(directory)?;
        let components: Vec<_> = checkpoint.components().collect();
        let rounded = checkpoint.description().clone().holding(HeldWeights::Bf16);
        let mut parts = Vec::new();
        for component in components {
            let mut bytes = 0;
            for (index, group) in checkpoint.groups(component).iter().enumerate() {
                let mut read = vec![0; group.len_bytes];
                checkpoint.read_group(GroupId { component, index }, &mut read)?;
                bytes += read.len() as u64;
            }
            let digest = checkpoint.fingerprint(component)?;
            parts.push(PartContents {
                name: name(component),
                groups: checkpoint.groups(component).len(),
                bytes,
                bf16_bytes: rounded.groups(component).iter().map(|group| group.len_bytes as u64).sum(),
                fingerprint: digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
            });
        }
        Ok(Self { parts })
    }
}

fn name(component: Component) -> &'static str {
    match component {
        Component::TextEncoder => "text_encoder",
        Component::HighNoise => "high_noise",
        Component::LowNoise => "low_noise",
        Component::VaeEncoder => "vae_encoder",
        Component::VaeDecoder => "vae_decoder",
    }
}

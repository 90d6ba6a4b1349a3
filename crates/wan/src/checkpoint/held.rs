//! In which types weights are held in memory.

use evanesce_kernels::Dtype;
use serde::{Deserialize, Serialize};

use super::component::is_linear;
use crate::weights::{Component, TensorSpec};

/// In which types a checkpoint's weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldWeights {
    /// The transformers' matrices in bfloat16: those that are stored in f32 are rounded as they are read, to the nearest, ties to
    /// even. Everything else as it is stored: what is bfloat16 or binary16 already, biases, norms, tables of modulation and
    /// the embedding of time, the text encoder, the VAE.
    Bf16,
    /// Everything as it is stored.
    Stored,
}

impl HeldWeights {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Bf16, Self::Stored];

    /// Its name on the command line and in a configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Stored => "stored",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|held| held.as_str() == name)
    }

    /// The type in memory of a tensor that has the type in which it is stored.
    pub(super) fn type_of(self, component: Component, tensor: &TensorSpec) -> Dtype {
        let rounds = self == Self::Bf16 && tensor.dtype == Dtype::F32 && may_round(component, &tensor.name);
        if rounds { Dtype::BF16 } else { tensor.dtype }
    }
}

/// Whether a tensor is a matrix of a transformer that bears bfloat16. diffusers keeps the embedding of time in f32 whatever it is
/// asked for (`_keep_in_fp32_modules`), and all that is no matrix and matters takes next to nothing.
fn may_round(component: Component, name: &str) -> bool {
    let is_expert = matches!(component, Component::HighNoise | Component::LowNoise);
    is_expert && is_linear(name) && !name.starts_with("condition_embedder.time_embedder.")
}

//! Wan2.2's transformer: an immutable description that runs over weights leased group by group.

mod block;
mod config;
mod cross;
mod embed;
mod frames;
mod head;
mod lone;
mod names;
mod params;
mod rope;
mod workspace;

use candle_core::{DType, Device, Tensor};

pub use config::{PATCH, TransformerConfig};
pub use cross::{Branch, CrossKv, CrossKvPage, NoCrossKv, TextRows};
pub use evanesce_kernels::{Codec, EncodedRows, Rows, encode};
pub use frames::{Attended, FrameKv, FramePage};
pub use lone::LoneBlock;
pub(crate) use names::LINEAR_LAYERS;
pub use names::{expected_tensors, official_name};
pub use rope::TokenGrid;

use block::{Block, CrossRows, Past, Surroundings};
use embed::{TimeRows, embed_patches, embed_text, embed_timestep};
use frames::TimeTurns;
use rope::RopeTable;
use workspace::Scratch;

use crate::error::{Result, WanError};
use crate::weights::{Component, GroupId, WeightSource};

/// One expert. Holds no weights and no state: both belong to the caller.
#[derive(Clone, Debug)]
pub struct Transformer {
    component: Component,
    config: TransformerConfig,
}

/// State of one branch within one forward pass.
struct Pass<'a> {
    branch: Branch<'a>,
    /// Residual stream, `[tokens, dim]`.
    tokens: Vec<f32>,
    /// Embedded text `[stored rows, dim]`, once some layer needed it.
    text: Option<Vec<f32>>,
    /// The page of the first layer, until that layer runs.
    first_page: Option<Box<dyn CrossKvPage + 'a>>,
}

/// Where the tokens of one call sit.
struct Places {
    rope: RopeTable,
    /// For blocks of a longer video.
    turns: Option<TimeTurns>,
    tokens_per_frame: usize,
}

impl Transformer {
    /// Describes the expert `component`.
    #[must_use]
    pub fn new(component: Component, config: TransformerConfig) -> Self {
        Self { component, config }
    }

    /// The numbers that fix its shape.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Bytes that one [`Self::forward`] of `branches` branches over `tokens` tokens allocates at most; weights and
    /// pages are the holders' own.
    #[must_use]
    pub fn workspace_bytes(&self, tokens: usize, branches: usize) -> usize {
        workspace::workspace_bytes(&self.config, tokens, branches)
    }

    /// Velocity of every branch at `timestep` (0..=1000), each of the latents' shape `[channels, frames, height,
    /// width]`, f32. All branches pass a block before the next one is leased, so every group is leased once; group 0 a
    /// second time only when a holder lost a cross-attention page between steps.
    ///
    /// # Errors
    /// When the latents or the text do not fit the model, or weights or pages cannot be had.
    pub fn forward(
        &self,
        latents: &Tensor,
        timestep: f64,
        branches: &[Branch<'_>],
        weights: &dyn WeightSource,
    ) -> Result<Vec<Tensor>> {
        let grid = self.grid(latents)?;
        branches.iter().try_for_each(|branch| self.check_text(branch.text))?;
        let (mut passes, time) = self.embed(latents, timestep, branches, weights, &grid)?;
        let places = self.places(&grid, branches)?;
        let mut scratch = Scratch::new(grid.tokens(), self.config.dim());
        for layer in 0..self.config.layers {
            self.run_layer(layer, &mut passes, &time, &places, weights, &mut scratch)?;
        }
        drop(scratch);
        let last = weights.lease(self.group(self.config.layers + 1))?;
        let velocities = passes.iter().map(|pass| {
            let velocity = head::head(&self.config, &*last, &pass.tokens, &time.embedding, &grid)?;
            Ok(Tensor::from_vec(velocity, latents.shape(), &Device::Cpu)?)
        });
        velocities.collect()
    }

    /// Rotations for the tokens of `grid`: in time and space, or for a block of a longer video in space alone, and in
    /// time for every page in reach.
    fn places(&self, grid: &TokenGrid, branches: &[Branch<'_>]) -> Result<Places> {
        let head_dim = self.config.head_dim;
        let reaches = branches.iter().map(|branch| {
            let past = branch.past?;
            let earliest = past.positions().iter().min().copied().unwrap_or(past.block_position());
            Some(past.block_position().saturating_sub(earliest))
        });
        let reaches: Vec<Option<usize>> = reaches.collect();
        let tokens_per_frame = grid.rows * grid.columns;
        match (reaches.iter().flatten().max(), reaches.contains(&None)) {
            (None, _) => Ok(Places { rope: RopeTable::new(grid, head_dim), turns: None, tokens_per_frame }),
            (Some(reach), false) => {
                let turns = TimeTurns::new(&self.config, grid.frames.len(), tokens_per_frame, *reach);
                Ok(Places { rope: RopeTable::spatial(grid, head_dim), turns: Some(turns), tokens_per_frame })
            }
            (Some(_), true) => {
                Err(WanError::mismatch("branches", "some with earlier frames, some without", "all or none"))
            }
        }
    }

    fn group(&self, index: usize) -> GroupId {
        GroupId { component: self.component, index }
    }

    /// Where the tokens of these latents sit.
    fn grid(&self, latents: &Tensor) -> Result<TokenGrid> {
        let expected = || {
            let [channels, positions] = [self.config.channels, self.config.rope_positions];
            format!("f32 [{channels}, 1.., even, even], at most {positions} tokens along an axis")
        };
        let fault = || {
            let got = format!("{:?} {:?}", latents.dtype(), latents.dims());
            WanError::mismatch("latents", got, expected())
        };
        let &[channels, frames, height, width] = latents.dims() else { return Err(fault()) };
        let [_, patch_height, patch_width] = PATCH;
        let grid = TokenGrid { frames: 0..frames, rows: height / patch_height, columns: width / patch_width };
        let axes = [frames, grid.rows, grid.columns];
        let fits = channels == self.config.channels
            && latents.dtype() == DType::F32
            && height.is_multiple_of(patch_height)
            && width.is_multiple_of(patch_width)
            && axes.iter().all(|axis| (1..=self.config.rope_positions).contains(axis));
        if fits { Ok(grid) } else { Err(fault()) }
    }

    fn check_text(&self, text: TextRows<'_>) -> Result<()> {
        let TextRows { real, pad_rows } = text;
        if real.len().is_multiple_of(self.config.text_dim) && real.len() + pad_rows > 0 {
            return Ok(());
        }
        let got = format!("{} numbers and {pad_rows} pad rows", real.len());
        Err(WanError::mismatch("text", got, format!("whole rows of {}, at least one", self.config.text_dim)))
    }

    /// Runs group 0: tokens and time, and the text of branches that miss their first page.
    fn embed<'a>(
        &self,
        latents: &Tensor,
        timestep: f64,
        branches: &[Branch<'a>],
        weights: &dyn WeightSource,
        grid: &TokenGrid,
    ) -> Result<(Vec<Pass<'a>>, TimeRows)> {
        let numbers = latents.flatten_all()?.to_vec1::<f32>()?;
        let first = weights.lease(self.group(0))?;
        let time = embed_timestep(&self.config, &*first, timestep)?;
        let tokens = embed_patches(&self.config, &*first, &numbers, grid)?;
        let mut passes = Vec::with_capacity(branches.len());
        for &branch in branches {
            let first_page = branch.cross.get(0)?;
            let mut pass = Pass { branch, tokens: tokens.clone(), text: None, first_page };
            if pass.first_page.is_none() {
                pass.text = Some(embed_text(&self.config, &*first, &self.text_input(branch.text))?);
            }
            passes.push(pass);
        }
        Ok((passes, time))
    }

    /// The rows to embed: the real ones, and one zero row for all pads.
    fn text_input(&self, text: TextRows<'_>) -> Vec<f32> {
        let mut rows = text.real.to_vec();
        rows.resize(text.stored_rows(self.config.text_dim) * self.config.text_dim, 0.0);
        rows
    }

    /// Runs every branch through block `layer`.
    fn run_layer(
        &self,
        layer: usize,
        passes: &mut [Pass<'_>],
        time: &TimeRows,
        places: &Places,
        weights: &dyn WeightSource,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut pages = Vec::with_capacity(passes.len());
        for pass in &mut *passes {
            let page = if layer == 0 { pass.first_page.take() } else { pass.branch.cross.get(layer)? };
            if page.is_none() && pass.text.is_none() {
                let first = weights.lease(self.group(0))?;
                let rows = self.text_input(pass.branch.text);
                pass.text = Some(embed_text(&self.config, &*first, &rows)?);
            }
            pages.push(page);
        }
        let lease = weights.lease(self.group(layer + 1))?;
        let block = Block::new(&self.config, layer, &*lease, &time.projected)?;
        for (pass, page) in passes.iter_mut().zip(&pages) {
            let fresh;
            let (keys, values) = match (page, &pass.text) {
                (Some(page), _) => (page.keys(), page.values()),
                (None, Some(text)) => {
                    fresh = block.cross_rows(text)?;
                    pass.branch.cross.put(layer, &fresh.keys, &fresh.values)?;
                    let CrossRows { keys, values } = &fresh;
                    (keys.as_slice(), values.as_slice())
                }
                (None, None) => unreachable!("text is embedded above for every branch without a page"),
            };
            let text = self.text_segments(layer, pass.branch.text, keys, values)?;
            let past = pass.branch.past.zip(places.turns.as_ref()).map(|(holder, turns)| Past {
                layer,
                holder,
                turns,
                tokens_per_frame: places.tokens_per_frame,
            });
            block.forward(
                &mut pass.tokens,
                Surroundings { rope: &places.rope, past, text: &text },
                scratch,
            )?;
        }
        Ok(())
    }

    fn text_segments<'a>(
        &self,
        layer: usize,
        text: TextRows<'_>,
        keys: &'a [f32],
        values: &'a [f32],
    ) -> Result<Vec<evanesce_kernels::KvSegment<'a>>> {
        let dim = self.config.dim();
        let expected = text.stored_rows(self.config.text_dim) * dim;
        if keys.len() != expected || values.len() != expected {
            let got = format!("{} and {}", keys.len(), values.len());
            return Err(WanError::mismatch(format!("cross-attention page of layer {layer}"), got, expected));
        }
        Ok(text.segments(keys, values, dim))
    }
}

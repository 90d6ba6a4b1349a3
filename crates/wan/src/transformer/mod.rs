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

use config::PATCH_VALUES;
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
use head::HeadRoom;
use rope::{Axes, RopeTable};
use workspace::{Room, Scratch};

use crate::error::{Result, WanError};
use crate::weights::{Component, GroupId, WeightSource};

/// One expert. Holds no weights and no state: both belong to the caller.
#[derive(Clone, Debug)]
pub struct Transformer {
    component: Component,
    config: TransformerConfig,
}

/// Latents where they lie.
#[derive(Clone, Copy, Debug)]
pub struct Latents<'a> {
    /// All numbers, row-major.
    pub numbers: &'a [f32],
    /// Channels, latent frames, height and width.
    pub shape: [usize; 4],
}

/// State of one branch within one forward pass.
struct Pass<'a> {
    branch: Branch<'a>,
    /// Residual stream, `[tokens, dim]`.
    tokens: &'a mut [f32],
    /// Embedded text `[stored rows, dim]`, once some layer needed it.
    text: Option<Vec<f32>>,
    /// The page of the first layer, until that layer runs.
    first_page: Option<Box<dyn CrossKvPage + 'a>>,
}

/// What a call embeds.
#[derive(Clone, Copy)]
struct Input<'a> {
    latents: &'a [f32],
    timestep: f64,
    grid: &'a TokenGrid,
}

/// Where the tokens of one call sit.
struct Places<'a> {
    rope: RopeTable<'a>,
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

    /// Numbers of the memory that [`Self::forward_in`] wants for `branches` branches over `tokens` tokens.
    #[must_use]
    pub fn workspace_numbers(&self, tokens: usize, branches: usize) -> usize {
        workspace::workspace_numbers(&self.config, tokens, branches)
    }

    /// Velocity of every branch at `timestep` (0..=1000), each of the latents' shape `[channels, frames, height,
    /// width]`, f32. See [`Self::forward_in`].
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
        let grid = self.grid(latents.dims(), latents.dtype())?;
        let numbers = latents.flatten_all()?.to_vec1::<f32>()?;
        let shape = latents.dims4()?.into();
        let mut memory = vec![0.0; self.workspace_numbers(grid.tokens(), branches.len())];
        let mut velocities = vec![0.0; branches.len() * numbers.len()];
        let latents = Latents { numbers: &numbers, shape };
        self.forward_in(latents, timestep, branches, weights, [&mut memory, &mut velocities])?;
        let velocities = velocities.chunks_exact(numbers.len());
        velocities.map(|velocity| Ok(Tensor::from_slice(velocity, &shape[..], &Device::Cpu)?)).collect()
    }

    /// Writes the velocity of every branch at `timestep` (0..=1000) into `velocities`, one after the other, each of the
    /// latents' shape. `memory` is overwritten; it has [`Self::workspace_numbers`] numbers at least. All branches pass a block
    /// before the next one is leased, so every group is leased once; group 0 a second time only when a holder lost a
    /// cross-attention page between steps.
    ///
    /// # Errors
    /// When the latents or the text do not fit the model, memory is too small, or weights or pages cannot be had.
    pub fn forward_in(
        &self,
        latents: Latents<'_>,
        timestep: f64,
        branches: &[Branch<'_>],
        weights: &dyn WeightSource,
        [memory, velocities]: [&mut [f32]; 2],
    ) -> Result<()> {
        let grid = self.grid(&latents.shape, DType::F32)?;
        let numbers = latents.shape.iter().product();
        if latents.numbers.len() != numbers || velocities.len() != branches.len() * numbers {
            let got = format!("{} and {}", latents.numbers.len(), velocities.len());
            let expected = format!("{numbers} and {} times as many", branches.len());
            return Err(WanError::mismatch("numbers of latents and velocities", got, expected));
        }
        branches.iter().try_for_each(|branch| self.check_text(branch.text))?;
        let mut room = Room(memory);
        let patches = room.take(grid.tokens() * PATCH_VALUES * self.config.channels)?;
        let dim = self.config.dim();
        let mut time = TimeRows { embedding: room.take(dim)?, projected: room.take(6 * dim)? };
        let rope = room.take(grid.tokens() * self.config.head_dim)?;
        let modulation = room.take(6 * dim)?;
        let tokens = (0..branches.len()).map(|_| room.take(grid.tokens() * dim));
        let tokens = tokens.collect::<Result<Vec<_>>>()?;
        let mut scratch = Scratch::new(&mut room, &self.config, grid.tokens())?;

        let places = self.places(&grid, branches, rope)?;
        let input = Input { latents: latents.numbers, timestep, grid: &grid };
        let mut passes = self.embed(input, branches, weights, (patches, tokens), &mut time)?;
        for layer in 0..self.config.layers {
            let projected = (&*time.projected, &mut *modulation);
            self.run_layer(layer, &mut passes, projected, &places, weights, &mut scratch)?;
        }
        let last = weights.lease(self.group(self.config.layers + 1))?;
        let modulation = &mut modulation[..2 * dim];
        let mut room = HeadRoom { normed: scratch.normed, patches, modulation };
        for (pass, velocity) in passes.iter().zip(velocities.chunks_exact_mut(numbers)) {
            head::head(&self.config, &*last, [pass.tokens, time.embedding], &grid, &mut room, velocity)?;
        }
        Ok(())
    }

    /// Rotations for the tokens of `grid`: in time and space, or for a block of a longer video in space alone, and in
    /// time for every page in reach.
    fn places<'a>(
        &self,
        grid: &TokenGrid,
        branches: &[Branch<'_>],
        rope: &'a mut [f32],
    ) -> Result<Places<'a>> {
        let head_dim = self.config.head_dim;
        let tokens_per_frame = grid.rows * grid.columns;
        let pasts: Vec<_> = branches.iter().filter_map(|branch| branch.past).collect();
        if pasts.is_empty() {
            let rope = RopeTable::new(grid, head_dim, Axes::All, rope);
            return Ok(Places { rope, turns: None, tokens_per_frame });
        }
        if pasts.len() < branches.len() {
            let got = "some with earlier frames, some without";
            return Err(WanError::mismatch("branches", got, "all or none"));
        }
        let back = pasts.iter().flat_map(|past| {
            let block = past.block_position().cast_signed();
            past.positions().iter().map(move |at| block - at.cast_signed())
        });
        let turns = TimeTurns::new(&self.config, grid.frames.len(), tokens_per_frame, back);
        let rope = RopeTable::new(grid, head_dim, Axes::Space, rope);
        Ok(Places { rope, turns: Some(turns), tokens_per_frame })
    }

    fn group(&self, index: usize) -> GroupId {
        GroupId { component: self.component, index }
    }

    /// Where the tokens of these latents sit.
    fn grid(&self, shape: &[usize], dtype: DType) -> Result<TokenGrid> {
        let expected = || {
            let [channels, positions] = [self.config.channels, self.config.rope_positions];
            format!("f32 [{channels}, 1.., even, even], at most {positions} tokens along an axis")
        };
        let fault = || {
            let got = format!("{dtype:?} {shape:?}");
            WanError::mismatch("latents", got, expected())
        };
        let &[channels, frames, height, width] = shape else { return Err(fault()) };
        let [_, patch_height, patch_width] = PATCH;
        let grid = TokenGrid { frames: 0..frames, rows: height / patch_height, columns: width / patch_width };
        let axes = [frames, grid.rows, grid.columns];
        let fits = channels == self.config.channels
            && dtype == DType::F32
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
        input: Input<'_>,
        branches: &[Branch<'a>],
        weights: &dyn WeightSource,
        (patches, tokens): (&mut [f32], Vec<&'a mut [f32]>),
        time: &mut TimeRows<'_>,
    ) -> Result<Vec<Pass<'a>>> {
        let first = weights.lease(self.group(0))?;
        embed_timestep(&self.config, &*first, input.timestep, time)?;
        let mut passes: Vec<Pass<'a>> = Vec::with_capacity(branches.len());
        for (&branch, tokens) in branches.iter().zip(tokens) {
            match passes.first() {
                Some(pass) => tokens.copy_from_slice(pass.tokens),
                None => embed_patches(
                    &self.config,
                    &*first,
                    input.latents,
                    input.grid,
                    [&mut *patches, &mut *tokens],
                )?,
            }
            let first_page = branch.cross.get(0)?;
            let mut pass = Pass { branch, tokens, text: None, first_page };
            if pass.first_page.is_none() {
                pass.text = Some(embed_text(&self.config, &*first, &self.text_input(branch.text))?);
            }
            passes.push(pass);
        }
        Ok(passes)
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
        (projected, modulation): (&[f32], &mut [f32]),
        places: &Places<'_>,
        weights: &dyn WeightSource,
        scratch: &mut Scratch<'_>,
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
        let block = Block::new(&self.config, layer, &*lease, projected, modulation)?;
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
            block.forward(pass.tokens, Surroundings { rope: &places.rope, past, text: &text }, scratch)?;
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

//! One transformer block with drawn weights, outside of any model: what a token costs, measured without a checkpoint.

use evanesce_kernels::{Dtype, Rows, Scratch, Taken};

use super::block::{Block, Past, Surroundings};
use super::config::TransformerConfig;
use super::cross::TextRows;
use super::frames::{FrameKv, FramePage, TimeTurns};
use super::names::expected_tensors;
use super::rope::{Axes, RopeTable, TokenGrid};
use super::workspace::{self, Room};
use crate::checkpoint::is_linear;
use crate::error::Result;
use crate::weights::{GroupSpec, WeightGroup};

/// Rows of text that the block attends to: a prompt of middling length and the collapsed pad rows.
const TEXT_ROWS: usize = 65;

/// A block, its inputs, and the memory of one pass.
#[derive(Debug)]
pub struct LoneBlock {
    config: TransformerConfig,
    weights: DrawnGroup,
    modulation: Vec<f32>,
    tokens: Vec<f32>,
    text: [Vec<f32>; 2],
    /// Rotations, `[tokens, head_dim]`.
    rope: Vec<f32>,
    grid: TokenGrid,
    past: Option<(DrawnPages, TimeTurns)>,
    memory: Taken,
    /// What threads work in.
    tiles: Scratch,
}

/// Numbers between -1 and 1, by a small generator.
fn drawn(count: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x9E37_79B9_u32;
    let draw = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        #[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
        let part = (state >> 8) as f32 / (1 << 23) as f32;
        (part - 1.0) * scale
    };
    (0..count).map(draw).collect()
}

impl LoneBlock {
    /// The sizes of Wan2.2-T2V-A14B, with one block.
    #[must_use]
    pub fn wan22_t2v_a14b() -> TransformerConfig {
        TransformerConfig {
            heads: 40,
            head_dim: 128,
            channels: 16,
            text_dim: 4096,
            freq_dim: 256,
            ffn_dim: 13_824,
            layers: 1,
            cross_attn_norm: true,
            eps: 1e-6,
            rope_positions: 1024,
        }
    }

    /// A block of `config` over `tokens` tokens that also sees `context_tokens` of earlier frames, plain and in pages as long
    /// as both numbers allow; weights in bfloat16, packed as a checkpoint's are.
    #[must_use]
    pub fn new(config: TransformerConfig, tokens: usize, context_tokens: usize) -> Self {
        let dim = config.dim();
        let per_frame = common_divisor(tokens, context_tokens);
        let frames = tokens / per_frame.max(1);
        let grid = TokenGrid { frames: 0..frames, rows: 1, columns: per_frame };
        let past = (context_tokens > 0).then(|| {
            let pages = DrawnPages::new(context_tokens / per_frame, per_frame * dim);
            let turns = TimeTurns::new(&config, frames, per_frame, 1..=pages.positions.len().cast_signed());
            (pages, turns)
        });
        Self {
            weights: DrawnGroup::block(&config),
            modulation: drawn(6 * dim, 0.1),
            tokens: drawn(tokens * dim, 1.0),
            text: [drawn(TEXT_ROWS * dim, 1.0), drawn(TEXT_ROWS * dim, 1.0)],
            rope: vec![0.0; tokens * config.head_dim],
            grid,
            past,
            memory: Scratch::default().take(workspace::Scratch::len(&config, tokens) + 6 * dim),
            tiles: Scratch::default(),
            config,
        }
    }

    /// Multiplications and additions of one pass, in its linear layers and attention.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate has three digits")]
    pub fn flop(&self) -> f64 {
        let (dim, ffn_dim) = (self.config.dim() as f64, self.config.ffn_dim as f64);
        let tokens = self.tokens.len() as f64 / dim;
        let earlier = self.past.as_ref().map_or(0, |(pages, _)| pages.keys.len()) as f64 / dim;
        let linear = tokens * (6.0 * dim * dim + 2.0 * dim * ffn_dim);
        let attention = 2.0 * tokens * dim * (tokens + earlier + TEXT_ROWS as f64);
        2.0 * (linear + attention)
    }

    /// One pass: adds the block's updates to its tokens.
    ///
    /// # Errors
    /// When the block's parts do not fit each other.
    pub fn run(&mut self) -> Result<()> {
        let dim = self.config.dim();
        let [keys, values] = &self.text;
        let text = TextRows { real: &[], pad_rows: 0 }.segments(keys, values, dim);
        let past = self.past.as_ref().map(|(holder, turns)| Past {
            layer: 0,
            holder,
            turns,
            tokens_per_frame: holder.page_numbers / dim,
        });
        let axes = if past.is_some() { Axes::Space } else { Axes::All };
        let rope = RopeTable::new(&self.grid, self.config.head_dim, axes, &mut self.rope);
        let around = Surroundings { rope: &rope, past, text: &text };
        let mut room = Room(&mut self.memory);
        let modulation = room.take(6 * dim)?;
        let mut scratch = workspace::Scratch::new(&mut room, &self.config, self.grid.tokens())?;
        let block = Block::new(&self.config, 0, &self.weights, &self.modulation, modulation)?;
        self.tiles.run(|| block.forward(&mut self.tokens, around, &mut scratch))
    }
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// A group as it would be read from a checkpoint.
#[derive(Debug)]
struct DrawnGroup {
    spec: GroupSpec,
    /// In line as packed weights want them.
    words: Taken,
}

impl DrawnGroup {
    fn block(config: &TransformerConfig) -> Self {
        let tensors = expected_tensors(config).swap_remove(1);
        let tensors = tensors.into_iter().map(|(name, shape)| (name, Dtype::BF16, shape));
        let spec = GroupSpec::pack(tensors).with_packed(is_linear);
        // Pairs of numbers near 0.01, whatever their order.
        let pattern = drawn(1 << 12, 0.02);
        let mut words = Scratch::default().take(spec.len_bytes.div_ceil(4));
        for (i, word) in words.iter_mut().enumerate() {
            let [low, high] = [2 * i, 2 * i + 1].map(|at| pattern[(at * 31) % pattern.len()].to_bits() >> 16);
            *word = f32::from_bits(low | high << 16);
        }
        Self { spec, words }
    }
}

impl WeightGroup for DrawnGroup {
    fn spec(&self) -> &GroupSpec {
        &self.spec
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words[..])[..self.spec.len_bytes]
    }
}

/// Pages of one layer that nobody commits to.
#[derive(Debug)]
struct DrawnPages {
    keys: Vec<f32>,
    values: Vec<f32>,
    page_numbers: usize,
    positions: Vec<usize>,
}

impl DrawnPages {
    fn new(pages: usize, page_numbers: usize) -> Self {
        let [keys, values] = [1.0, 0.5].map(|scale| drawn(pages * page_numbers, scale));
        Self { keys, values, page_numbers, positions: (0..pages).collect() }
    }
}

struct DrawnPage<'a>(&'a [f32], &'a [f32]);

impl FramePage for DrawnPage<'_> {
    fn keys(&self) -> Rows<'_> {
        self.0.into()
    }

    fn values(&self) -> Rows<'_> {
        self.1.into()
    }
}

impl FrameKv for DrawnPages {
    fn positions(&self) -> &[usize] {
        &self.positions
    }

    fn block_position(&self) -> usize {
        self.positions.len()
    }

    fn pages(&self, _layer: usize) -> Result<Vec<Box<dyn FramePage + '_>>> {
        let pages =
            self.keys.chunks_exact(self.page_numbers).zip(self.values.chunks_exact(self.page_numbers));
        Ok(pages.map(|(keys, values)| Box::new(DrawnPage(keys, values)) as Box<dyn FramePage>).collect())
    }

    fn commit(&self, _layer: usize, _keys: &[f32], _values: &[f32]) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{LoneBlock, TransformerConfig};

    #[test]
    fn a_lone_block_runs_alone_and_after_earlier_frames() {
        let config = TransformerConfig { heads: 2, head_dim: 24, ffn_dim: 64, ..LoneBlock::wan22_t2v_a14b() };
        for (tokens, context_tokens) in [(7, 0), (12, 20)] {
            let mut block = LoneBlock::new(config.clone(), tokens, context_tokens);
            let before = block.tokens.clone();
            block.run().unwrap();
            assert!(block.tokens.iter().all(|number| number.is_finite()));
            assert!(block.tokens.iter().zip(&before).all(|(after, before)| after != before));
        }
    }

    #[test]
    fn the_work_of_a_block_is_that_of_its_products() {
        let block = LoneBlock::new(
            TransformerConfig { heads: 1, head_dim: 8, ffn_dim: 16, ..LoneBlock::wan22_t2v_a14b() },
            2,
            4,
        );
        let linear = 2 * (6 * 8 * 8 + 2 * 8 * 16);
        let attention = 2 * 2 * 8 * (2 + 4 + 65);
        assert!((block.flop() - f64::from(2 * (linear + attention))).abs() < 1e-9);
    }
}

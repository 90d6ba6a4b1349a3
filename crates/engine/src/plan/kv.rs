//! The size of a plain cache of keys and values, whatever model it belongs to.

use crate::self_kv::KvCodec;

/// Layers that each keep keys and values of so many tokens, `dim` numbers each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Tokens that are kept.
    pub tokens: usize,
    /// Numbers of a key, over all heads; as many of a value.
    pub dim: usize,
}

/// What a shape takes in one codec.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvSize {
    /// The codec's name.
    pub codec: &'static str,
    /// Scales and minima included.
    pub bytes: u64,
    /// Bits of one number, scales and minima included.
    pub bits_per_number: f64,
}

impl KvShape {
    /// Its size in every codec, as pages are counted.
    ///
    /// ```
    /// use evanesce_engine::plan::KvShape;
    ///
    /// let sizes = KvShape { layers: 32, tokens: 8192, dim: 4096 }.sizes();
    /// assert_eq!((sizes[0].codec, sizes[0].bytes), ("f32", 8_589_934_592));
    /// ```
    #[must_use]
    pub fn sizes(&self) -> Vec<KvSize> {
        let numbers = 2 * self.layers as u64 * self.tokens as u64 * self.dim as u64;
        let size = |name: &'static str| {
            let codec = KvCodec::from_name(name)?;
            let bytes = self.layers as u64 * codec.page_bytes(self.tokens, self.dim) as u64;
            Some(KvSize { codec: name, bytes, bits_per_number: 8.0 * bytes as f64 / numbers.max(1) as f64 })
        };
        KvCodec::NAMES.into_iter().filter_map(size).collect()
    }
}

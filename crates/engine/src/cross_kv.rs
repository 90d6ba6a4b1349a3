//! Cross-attention keys and values as entries of a job.

use evanesce_cache::{Job, Lease, Lifetime, PutSpec, Recover, Tier, Writer};
use evanesce_wan::Result;
use evanesce_wan::text::TOKENS_MAX;
use evanesce_wan::transformer::{CrossKv, CrossKvPage};
use evanesce_wan::weights::Component;

use crate::bytes::{as_f32, write_f32};
use crate::keys::{self, BranchName};

/// Bytes of a page of a prompt of so many tokens, keys and values of `dim` numbers: one row of them stands for all pads.
pub(crate) fn page_bytes(tokens: usize, dim: usize) -> usize {
    let rows = tokens + usize::from(tokens < TOKENS_MAX);
    2 * rows * dim * size_of::<f32>()
}

/// The pages of one expert and branch, put at one step.
#[derive(Debug)]
pub(crate) struct CrossPages<'a> {
    /// Their owner.
    pub(crate) job: &'a Job,
    /// Whose weights made them.
    pub(crate) expert: Component,
    /// Whose text.
    pub(crate) branch: BranchName,
    /// How long a page put now lives.
    pub(crate) lifetime: Lifetime,
}

/// Keys, then values, in one entry: they live together (law 7).
struct Page(Lease);

impl Page {
    fn half(&self, second: bool) -> &[f32] {
        let numbers = as_f32(self.0.bytes());
        let (keys, values) = numbers.split_at(numbers.len() / 2);
        if second { values } else { keys }
    }
}

impl CrossKvPage for Page {
    fn keys(&self) -> &[f32] {
        self.half(false)
    }

    fn values(&self) -> &[f32] {
        self.half(true)
    }
}

impl CrossKv for CrossPages<'_> {
    fn get(&self, layer: usize) -> Result<Option<Box<dyn CrossKvPage + '_>>> {
        let lease = self.job.get(&keys::cross_kv(self.expert, self.branch, layer));
        Ok(lease.map(|lease| Box::new(Page(lease)) as Box<dyn CrossKvPage>))
    }

    fn put(&self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        let mut writer = self.begin(layer, 4 * (keys.len() + values.len()))?;
        let (first, second) = writer.bytes_mut().split_at_mut(4 * keys.len());
        write_f32(first, keys);
        write_f32(second, values);
        let key = *writer.key();
        drop(writer.commit().map_err(|error| crate::store_error(&key, error.refusal))?);
        Ok(())
    }
}

impl CrossPages<'_> {
    /// Begins a page of `len_bytes`.
    pub(crate) fn begin(&self, layer: usize, len_bytes: usize) -> Result<Writer> {
        let key = keys::cross_kv(self.expert, self.branch, layer);
        // Whoever misses it computes it from the text.
        let spec = PutSpec::new(Tier::Device, self.lifetime, len_bytes).recover(Recover::Recompute);
        self.job.put_with(key, spec).map_err(|error| crate::store_error(&key, error))
    }
}

//! Where weights and pages will be under some budgets, and which codec to take.

use evanesce_cache::Cache;
use evanesce_wan::weights::Component;

use super::TierBudgets;
use crate::admission::Needs;
use crate::blueprint::Blueprint;
use crate::request::JobSpec;
use crate::self_kv::KvCodec;

/// Where weights are while a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsIn {
    /// All of them in the device from their first use on.
    Device,
    /// The experts' leave and are read again at every pass or every switch: there is no room for all of them.
    Streamed,
}

/// Where the pages of keys and values are that do not fit above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagesIn {
    /// There are none: the video is made at once.
    Nowhere,
    /// All in the device.
    Device,
    /// The rest waits in the host.
    Host,
    /// The rest waits in the host and on the disk.
    Disk,
}

/// What one codec would need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodecNeeds {
    /// Its name.
    pub codec: &'static str,
    /// All pages at once, in the device's bytes.
    pub pages_bytes: u64,
    /// The least device tier without the tiers below.
    pub device_bytes_alone: u64,
    /// The least beside them.
    pub device_bytes_needed: u64,
    /// Whether that is there.
    pub fits: bool,
}

/// The policy that a job would run under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where weights are.
    pub weights: WeightsIn,
    /// Where pages are, in the codec that was asked for.
    pub pages: PagesIn,
    /// Every codec, the most exact first; none where there are no pages.
    pub codecs: Vec<CodecNeeds>,
    /// The most exact codec with which all pages are in the device; else the most exact that fits at all.
    pub codec: Option<&'static str>,
}

impl Choice {
    pub(super) fn new(
        blueprint: &Blueprint,
        spec: &JobSpec,
        prompt_tokens: [usize; 2],
        budgets: TierBudgets,
        cache: &Cache,
    ) -> Self {
        let with = |codec: KvCodec| {
            let spec = JobSpec { kv_codec: codec, ..spec.clone() };
            Needs::new(blueprint, &spec, prompt_tokens)
        };
        let needs = with(spec.kv_codec);
        let all_weights: usize = [Component::TextEncoder, Component::VaeDecoder]
            .into_iter()
            .chain(distinct(blueprint.experts()))
            .map(|component| blueprint.group_bytes(component).sum::<usize>())
            .sum();
        let weights = if needs.device_bytes() + all_weights as u64 <= budgets.device_bytes {
            WeightsIn::Device
        } else {
            WeightsIn::Streamed
        };
        let pages = if needs.page_bytes() == 0 {
            PagesIn::Nowhere
        } else if needs.device_bytes() <= budgets.device_bytes {
            PagesIn::Device
        } else if needs.device_bytes_beside(budgets.host_bytes, None) <= budgets.device_bytes {
            PagesIn::Host
        } else {
            PagesIn::Disk
        };
        let codecs = KvCodec::NAMES.into_iter().filter(|_| needs.page_bytes() > 0).filter_map(|name| {
            let needs = with(KvCodec::from_name(name)?);
            let device_bytes_needed = needs.device_bytes_beside(budgets.host_bytes, cache.disk());
            Some(CodecNeeds {
                codec: name,
                pages_bytes: needs.page_bytes(),
                device_bytes_alone: needs.device_bytes(),
                device_bytes_needed,
                fits: device_bytes_needed <= budgets.device_bytes,
            })
        });
        let mut codecs: Vec<_> = codecs.collect();
        codecs.sort_by_key(|codec| std::cmp::Reverse(codec.pages_bytes));
        // Exact enough for what was computed with; f32 is for comparing.
        let usual = || codecs.iter().filter(|codec| codec.codec != "f32");
        let codec = usual()
            .find(|codec| codec.device_bytes_alone <= budgets.device_bytes)
            .or_else(|| usual().find(|codec| codec.fits))
            .map(|codec| codec.codec);
        Self { weights, pages, codecs, codec }
    }
}

fn distinct([high, low]: [Component; 2]) -> impl Iterator<Item = Component> {
    [Some(high), (low != high).then_some(low)].into_iter().flatten()
}

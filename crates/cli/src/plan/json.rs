//! A plan as one JSON object.

use evanesce_engine::plan::{KvShape, KvSize, Moved, PagesIn, Plan, WeightsIn};
use serde_json::{Map, Value, json};

use super::rates::Rates;
use super::steps_of;
use super::table::fetch_or_recompute;

/// The whole plan. Bytes are those of the cache's counters; `units` has one object for each unit that was gone through.
pub(super) fn of(name: &str, plan: &Plan, rates: &Rates) -> Value {
    let spec = &plan.spec;
    json!({
        "model": name,
        "frames": spec.frames,
        "width": spec.width,
        "height": spec.height,
        "fps": spec.fps,
        "steps": spec.steps(),
        "latent_frames": spec.latent_frames(),
        "blocks": plan.blocks,
        "blocks_left_out": plan.blocks_left_out,
        "steps_left_out": plan.steps_left_out,
        "fits": plan.fits(),
        "device_bytes_needed": plan.device_bytes_needed,
        "device_bytes_alone": plan.device_bytes_alone,
        "memory": memory(plan),
        "policy": policy(plan, rates),
        "step": step(plan, rates),
        "rates": {
            "copy_bytes_per_s": rates.copy_bytes_per_s,
            "flop_per_s": rates.flop_per_s,
            "disk_write_bytes_per_s": rates.disk_write_bytes_per_s,
            "disk_read_bytes_per_s": rates.disk_read_bytes_per_s,
        },
        "units": plan.units.iter().map(|unit| {
            let tiers = unit.memory.tiers.iter().map(|tier| {
                let kinds: Map<String, Value> =
                    tier.kinds.iter().filter(|(_, bytes)| *bytes > 0).map(|(kind, bytes)| ((*kind).to_owned(), json!(bytes))).collect();
                (tier.tier.to_owned(), json!({ "used": tier.used_bytes, "kinds": kinds }))
            });
            json!({
                "stage": unit.stage.as_str(),
                "block": unit.block,
                "tiers": tiers.collect::<Map<String, Value>>(),
                "moved": moved(unit.moved),
                "flop": unit.flop,
            })
        }).collect::<Vec<_>>(),
    })
}

/// Peaks by tier and kind, `null` where the job does not fit.
fn memory(plan: &Plan) -> Value {
    let Some(memory) = &plan.memory else { return Value::Null };
    let tiers = memory.tiers.iter().map(|tier| {
        let traffic = tier.traffic;
        let value = json!({
            "budget": tier.budget_bytes,
            "peak": tier.peak_bytes,
            "demoted_bytes": traffic.demoted_bytes,
            "promoted_bytes": traffic.promoted_bytes,
        });
        (tier.tier.to_owned(), value)
    });
    let kinds = memory.kinds.iter().map(|kind| {
        let value = json!({
            "peak": kind.peak_bytes,
            "puts": kind.puts,
            "encoded_bytes": kind.encoded_bytes,
            "raw_bytes": kind.raw_bytes,
        });
        (kind.kind.to_owned(), value)
    });
    json!({ "tiers": tiers.collect::<Map<_, _>>(), "kinds": kinds.collect::<Map<_, _>>() })
}

fn policy(plan: &Plan, rates: &Rates) -> Value {
    let codecs = plan.choice.codecs.iter().map(|codec| {
        json!({
            "codec": codec.codec,
            "pages_bytes": codec.pages_bytes,
            "device_bytes_needed": codec.device_bytes_needed,
            "device_bytes_alone": codec.device_bytes_alone,
            "fits": codec.fits,
        })
    });
    json!({
        "weights": match plan.choice.weights {
            WeightsIn::Device => "device",
            WeightsIn::Streamed => "streamed",
        },
        "pages": match plan.choice.pages {
            PagesIn::Nowhere => "none",
            PagesIn::Device => "device",
            PagesIn::Host => "host",
            PagesIn::Disk => "disk",
        },
        "kv_codec": plan.choice.codec,
        "codecs": codecs.collect::<Vec<_>>(),
        "fetch_is_cheaper_than_recompute":
            fetch_or_recompute(plan, rates).map(|(fetch_s, recompute_s)| fetch_s <= recompute_s),
    })
}

/// A step of the steady state and the seconds that its parts take here.
fn step(plan: &Plan, rates: &Rates) -> Value {
    let Some((bytes, flop)) = plan.steady_step() else { return Value::Null };
    let seconds = |amount: f64, rate: Option<f64>| rate.map(|rate| amount / rate);
    let copied = (bytes.to_host_bytes + bytes.from_host_bytes) as f64;
    json!({
        "moved": moved(bytes),
        "flop": flop,
        "recompute_flop": plan.recompute_flop,
        "steps": steps_of(plan),
        "seconds": {
            "copy": seconds(copied, rates.copy_bytes_per_s),
            "disk_write": seconds(bytes.to_disk_bytes as f64, rates.disk_write_bytes_per_s),
            "disk_read": seconds(bytes.from_disk_bytes as f64, rates.disk_read_bytes_per_s),
            "compute": seconds(flop, rates.flop_per_s),
            "recompute": seconds(plan.recompute_flop, rates.flop_per_s),
        },
    })
}

fn moved(moved: Moved) -> Value {
    json!({
        "weights": moved.weights_bytes,
        "to_host": moved.to_host_bytes,
        "from_host": moved.from_host_bytes,
        "to_disk": moved.to_disk_bytes,
        "from_disk": moved.from_disk_bytes,
    })
}

/// Keys and values of a shape in every codec.
pub(super) fn of_shape(shape: KvShape, sizes: &[KvSize]) -> Value {
    let codecs = sizes.iter().map(|size| {
        (size.codec.to_owned(), json!({ "bytes": size.bytes, "bits_per_number": size.bits_per_number }))
    });
    json!({
        "layers": shape.layers,
        "tokens": shape.tokens,
        "dim": shape.dim,
        "codecs": codecs.collect::<Map<_, _>>(),
    })
}

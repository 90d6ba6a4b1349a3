//! Bytes over the units of a job as stacked areas, in SVG.

use super::recorder::Sample;
use crate::quantity::show_bytes;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 260.0;
/// Room for the numbers at the left and the names of stages below.
const LEFT: f64 = 80.0;
const BELOW: f64 = 22.0;
/// Enough for every kind, apart for people who see few colours (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999"];

/// What one tier held, one area a kind; nothing where it held nothing.
pub(super) fn stacked_areas(samples: &[Sample], tier: usize) -> Option<String> {
    let layers = layers(samples, tier);
    let most =
        (0..samples.len()).map(|i| layers.iter().map(|l| l.1[i]).sum()).max().filter(|most| *most > 0)?;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"bytes over the job\">",
        LEFT + WIDTH,
        HEIGHT + BELOW
    );
    let mut floor = vec![0; samples.len()];
    for ((name, values), colour) in
        layers.iter().zip(COLOURS).filter(|((_, values), _)| values.iter().any(|v| *v > 0))
    {
        let top: Vec<u64> = floor.iter().zip(values).map(|(f, v)| f + v).collect();
        svg += &format!(
            "<path fill=\"{colour}\" d=\"{}\"><title>{name}</title></path>",
            area(&floor, &top, most)
        );
        floor = top;
    }
    for part in 0..=4u64 {
        let (y, bytes) = (HEIGHT - HEIGHT * part as f64 / 4.0, most * part / 4);
        let shown = show_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
        svg += &format!(
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}h{WIDTH}\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{shown}</text>",
            LEFT - 6.0,
            (y + 4.0).clamp(10.0, HEIGHT)
        );
    }
    svg += &stages(samples);
    svg += "</svg>";
    Some(svg + &legend(&layers))
}

/// Name and bytes of every kind that is charged to it.
fn layers(samples: &[Sample], tier: usize) -> Vec<(&'static str, Vec<u64>)> {
    let Some(first) = samples.first() else { return Vec::new() };
    let held = |i: usize| -> Vec<u64> { samples.iter().map(|s| s.memory.tiers[tier].kinds[i].1).collect() };
    let kinds = first.memory.tiers[tier].kinds.iter().enumerate();
    kinds.map(|(i, kind)| (kind.0, held(i))).collect()
}

/// Steps rather than slopes: a unit's bytes are those at its end.
fn area(floor: &[u64], top: &[u64], most: u64) -> String {
    let x = |i: usize| LEFT + WIDTH * i as f64 / top.len() as f64;
    let y = |bytes: u64| HEIGHT - HEIGHT * bytes as f64 / most as f64;
    let mut path = format!("M{:.1} {:.1}", x(0), y(floor[0]));
    for (i, bytes) in top.iter().enumerate() {
        path += &format!("V{:.1}H{:.1}", y(*bytes), x(i + 1));
    }
    for (i, bytes) in floor.iter().enumerate().rev() {
        path += &format!("V{:.1}H{:.1}", y(*bytes), x(i));
    }
    path + "Z"
}

/// Where a stage begins, unless its name would stand on the one before.
fn stages(samples: &[Sample]) -> String {
    let (mut marks, mut free_from, mut before) = (String::new(), 0.0, None);
    for (i, sample) in samples.iter().enumerate() {
        let x = LEFT + WIDTH * i as f64 / samples.len() as f64;
        if before != Some(sample.stage) && x >= free_from {
            marks += &format!(
                "<path class=\"mark\" d=\"M{x:.1} 0v{}\"/><text x=\"{:.1}\" y=\"{}\">{}</text>",
                HEIGHT + 6.0,
                x + 3.0,
                HEIGHT + 16.0,
                sample.stage.as_str()
            );
            free_from = x + 70.0;
        }
        before = Some(sample.stage);
    }
    marks
}

fn legend(layers: &[(&'static str, Vec<u64>)]) -> String {
    let used = layers.iter().zip(COLOURS).filter(|((_, values), _)| values.iter().any(|v| *v > 0));
    let entries: String = used
        .map(|((name, values), colour)| {
            let most = values.iter().max().copied().unwrap_or_default();
            let shown = show_bytes(usize::try_from(most).unwrap_or(usize::MAX));
            format!("<li><i style=\"background:{colour}\"></i>{name}, {shown} at most</li>")
        })
        .collect();
    format!("<ul class=\"legend\">{entries}</ul>")
}

#[cfg(test)]
mod tests {
    use evanesce_engine::progress::Stage;

    use super::super::recorder::tests::holding;
    use super::*;

    fn samples() -> Vec<Sample> {
        let sample = |(stage, bytes)| Sample { stage, memory: holding(bytes) };
        [(Stage::Text, 100), (Stage::Denoise, 200), (Stage::Denoise, 400), (Stage::Decode, 40)]
            .map(sample)
            .to_vec()
    }

    #[test]
    fn areas_are_stacked_and_reach_from_the_floor_to_the_most() {
        let svg = stacked_areas(&samples(), 0).unwrap();
        let weights = "M80.0 260.0V216.7H305.0V173.3H530.0V86.7H755.0V242.7H980.0V260.0H755.0V260.0H530.0V260.0H305.0V260.0H80.0Z";
        assert!(svg.contains(weights), "{svg}");
        assert_eq!(svg.matches("<title>").count(), 2, "weights and self_kv");
        let at_the_most = format!("V{:.1}H755.0", 0.0);
        assert!(svg.contains(&at_the_most), "the highest sample touches the top: {svg}");
        assert!(svg.contains(">text<") && svg.contains(">decode<") && svg.contains("weights, 400 B at most"));
    }

    #[test]
    fn a_tier_that_held_nothing_has_no_picture() {
        let empty = vec![Sample { stage: Stage::Text, memory: holding(0) }];
        assert!(stacked_areas(&empty, 0).is_none());
        assert!(stacked_areas(&[], 0).is_none());
    }
}

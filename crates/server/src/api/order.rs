//! A request checked against the model, the limits and the budget, with every default filled in: an [`Order`].

use evanesce_engine::video::VideoSettings;
use evanesce_engine::{JobSpec, Model, Needs, Request, RequestedLength, Tier};

use super::App;
use super::access::Tenant;
use super::error::ApiError;
use crate::config::Limits;
use crate::encoder::Encoder;
use crate::job::{Class, Order, OrderPages};
use crate::wire::CreateVideo;

/// Deadlines further away than a week mean nothing.
const DEADLINE_S_MAX: f64 = 604_800.0;
/// Frames per second, at most.
pub(super) const FPS_MAX: u32 = 240;

/// What `asked` means here.
pub(super) fn order(app: &App, tenant: &Tenant, asked: CreateVideo) -> Result<Order, ApiError> {
    let limits = &app.limits;
    if asked.model.as_ref().is_some_and(|model| *model != app.model_name) {
        let sentence = format!("there is no such model here; the one that is served is {}", app.model_name);
        return Err(ApiError::field("model", sentence).with_code("model_not_found"));
    }
    let class = asked.priority.unwrap_or_default().max(tenant.ceiling);
    if asked.priority.is_some_and(|wanted| wanted < tenant.ceiling) {
        let sentence = format!("the best priority of this key is {}", tenant.ceiling.as_str());
        return Err(ApiError::field("priority", sentence));
    }
    check_prompts(&asked, limits)?;
    check_numbers(&asked, limits)?;
    let request = app.pages.fill(request(&asked, &app.model, drawn_seed)?);
    check_shape(&request, app)?;
    let length = request.length;
    let spec = JobSpec::new(request, app.model.checkpoint()).map_err(|error| match error {
        evanesce_engine::EngineError::Request(sentence) => {
            ApiError::body(sentence).with_code("invalid_value")
        }
        other => ApiError::body(other.to_string()).with_code("invalid_value"),
    })?;
    let too_many =
        |frames: usize| format!("{frames} frames are too many; at most {} are made", limits.frames_max);
    if spec.frames > limits.frames_max {
        return Err(ApiError::field(length_field(length), too_many(spec.frames)));
    }
    if spec.width * spec.height > limits.pixels_max {
        let sentence = format!(
            "{}x{} is too large; a frame has at most {} pixels",
            spec.width, spec.height, limits.pixels_max
        );
        return Err(ApiError::field("size", sentence));
    }
    check_encoder(&spec, &app.encoder)?;
    let device_bytes = fitting_bytes(app, &spec)?;
    check_class(app, class, device_bytes)?;
    let seconds = asked.seconds.unwrap_or_else(|| duration(spec.frames, spec.fps));
    let pages = OrderPages::of(&spec);
    Ok(Order {
        model: app.model_name.clone(),
        steps: spec.steps(),
        prompt: spec.prompt,
        negative_prompt: spec.negative,
        width: spec.width,
        height: spec.height,
        frames: spec.frames,
        fps: spec.fps,
        seconds,
        guidance_high: spec.guidance_high,
        guidance_low: spec.guidance_low,
        boundary: spec.boundary,
        shift: spec.shift,
        pages,
        weights: Some(app.model.checkpoint().held()),
        seed: spec.seed,
        class,
        quality: asked.quality.unwrap_or_default(),
        deadline_s: asked.deadline_s,
        device_bytes,
    })
}

fn check_prompts(asked: &CreateVideo, limits: &Limits) -> Result<(), ApiError> {
    if asked.prompt.trim().is_empty() {
        return Err(ApiError::field("prompt", "prompt is empty; say what the video should show"));
    }
    let negative = asked.negative_prompt.as_deref().unwrap_or_default();
    for (name, text) in [("prompt", asked.prompt.as_str()), ("negative_prompt", negative)] {
        let n_chars = text.chars().count();
        if n_chars > limits.prompt_chars_max {
            let max = limits.prompt_chars_max;
            return Err(ApiError::field(
                name,
                format!("{name} has {n_chars} characters; at most {max} are read"),
            ));
        }
        if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            return Err(ApiError::field(name, format!("{name} has control characters; send plain text")));
        }
    }
    Ok(())
}

fn check_numbers(asked: &CreateVideo, limits: &Limits) -> Result<(), ApiError> {
    let within = |name: &'static str, value: Option<f64>, min: f64, max: f64| match value {
        Some(value) if !(min..=max).contains(&value) => {
            Err(ApiError::field(name, format!("{name} is {value}; it lies between {min} and {max}")))
        }
        _ => Ok(()),
    };
    let steps_max = limits.steps_max as f64;
    within("num_inference_steps", asked.num_inference_steps.map(|steps| steps as f64), 1.0, steps_max)?;
    within("fps", asked.fps.map(f64::from), 1.0, f64::from(FPS_MAX))?;
    within("guidance_scale", asked.guidance_scale, 0.0, 100.0)?;
    within("guidance_scale_2", asked.guidance_scale_2, 0.0, 100.0)?;
    within("boundary_ratio", asked.boundary_ratio, 0.0, 1.0)?;
    within("flow_shift", asked.flow_shift, 0.01, 100.0)?;
    within("deadline_s", asked.deadline_s, 0.0, DEADLINE_S_MAX)
}

fn request(
    asked: &CreateVideo,
    model: &Model,
    draw: impl Fn() -> Result<u64, ApiError>,
) -> Result<Request, ApiError> {
    let length = match (asked.num_frames, &asked.seconds) {
        (Some(_), Some(_)) => {
            return Err(ApiError::field(
                "num_frames",
                "num_frames and seconds are both given; give one of them",
            ));
        }
        (Some(frames), None) => Some(RequestedLength::Frames(frames)),
        (None, Some(text)) => {
            let seconds =
                text.trim().parse::<f64>().ok().filter(|s| (0.0..=4096.0).contains(s) && !text.is_empty());
            let wrong =
                || ApiError::field("seconds", "seconds is a number such as \"5\", between 0 and 4096");
            Some(RequestedLength::Seconds(seconds.ok_or_else(wrong)?))
        }
        (None, None) => None,
    };
    let defaults = model.checkpoint().defaults();
    Ok(Request {
        negative: asked.negative_prompt.clone(),
        size: asked.size.as_deref().map(parse_size).transpose()?,
        length,
        fps: asked.fps,
        steps: asked.num_inference_steps,
        guidance_high: asked.guidance_scale,
        // As in the pipelines of Python: one scale is for both experts.
        guidance_low: asked.guidance_scale_2.or(asked.guidance_scale).or(defaults.guidance_low),
        boundary: asked.boundary_ratio,
        shift: asked.flow_shift,
        ..Request::new(asked.prompt.clone(), asked.seed.map_or_else(draw, Ok)?)
    })
}

/// A number nobody chose, small enough for every language's integers.
fn drawn_seed() -> Result<u64, ApiError> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(ApiError::internal)?;
    Ok(u64::from(u32::from_le_bytes(bytes)))
}

fn parse_size(text: &str) -> Result<(usize, usize), ApiError> {
    let wrong = || ApiError::field("size", "size is WIDTHxHEIGHT in pixels, such as \"832x480\"");
    let (width, height) = text.split_once('x').ok_or_else(wrong)?;
    let pixels = |side: &str| {
        let plain = !side.is_empty() && side.len() <= 6 && side.bytes().all(|b| b.is_ascii_digit());
        side.parse().ok().filter(|_| plain).ok_or_else(wrong)
    };
    Ok((pixels(width)?, pixels(height)?))
}

fn length_field(length: Option<RequestedLength>) -> &'static str {
    if matches!(length, Some(RequestedLength::Seconds(_))) { "seconds" } else { "num_frames" }
}

/// Names the field that the model refuses.
fn check_shape(request: &Request, app: &App) -> Result<(), ApiError> {
    let checkpoint = app.model.checkpoint();
    if let Some((width, height)) = request.size {
        if width.saturating_mul(height) > app.limits.pixels_max {
            let sentence = format!(
                "{width}x{height} is too large; a frame has at most {} pixels",
                app.limits.pixels_max
            );
            return Err(ApiError::field("size", sentence));
        }
        checkpoint
            .validate_size(width, height)
            .map_err(|error| ApiError::field("size", error.to_string()))?;
    }
    if let Some(RequestedLength::Frames(frames)) = request.length {
        checkpoint
            .validate_frames(frames)
            .map_err(|error| ApiError::field("num_frames", error.to_string()))?;
    }
    Ok(())
}

/// Refuses what cannot be encoded, before frames are made that nobody will see. What another program can encode only it knows.
fn check_encoder(spec: &JobSpec, encoder: &Encoder) -> Result<(), ApiError> {
    match encoder {
        Encoder::BuiltIn => VideoSettings::new(spec.width, spec.height, spec.fps)
            .check()
            .map_err(|error| ApiError::field("size", error.to_string())),
        Encoder::Ffmpeg { .. } => Ok(()),
    }
}

/// Refuses what the engine would not begin: a job that needs more than all jobs of its class may have.
fn check_class(app: &App, class: Class, needed_bytes: u64) -> Result<(), ApiError> {
    let checked = app.terms.rules.check(class, needed_bytes);
    checked.map_err(|sentence| ApiError::body(sentence).with_code("does_not_fit"))
}

/// The bytes to plan for a job; one that can never fit is refused with what would. What fits only when memory is not short waits, and
/// what fits only with pages on disk is planned with more than there is, so it has the device, and the disk, to itself.
fn fitting_bytes(app: &App, spec: &JobSpec) -> Result<u64, ApiError> {
    let (model, room) = (&app.model, app.terms.rules.room);
    let counters = model.counters();
    let budget_bytes = counters.tier(Tier::Device).budget_bytes.max(room.device_bytes);
    // The host is for parked jobs: nobody's pages count on it.
    let beside_disk = |needs: Needs| needs.device_bytes_beside_disk(model.cache().disk());
    let needs = model.needs(spec).map_err(ApiError::internal)?;
    let needed_bytes = beside_disk(needs);
    if needed_bytes <= budget_bytes {
        return Ok(needs.device_bytes());
    }
    let needed = |frames: usize| {
        let shorter = JobSpec { frames, ..spec.clone() };
        model.needs(&shorter).map(beside_disk).map_err(ApiError::internal)
    };
    // More frames never need less: the largest that fits is found by halving.
    let (mut fits, mut too_many) = (None, (spec.frames - 1) / 4);
    let mut least = 0;
    while least < too_many {
        let middle = usize::midpoint(least, too_many);
        if needed(middle * 4 + 1)? <= budget_bytes {
            (fits, least) = (Some(middle * 4 + 1), middle + 1);
        } else {
            too_many = middle;
        }
    }
    let (width, height, frames) = (spec.width, spec.height, spec.frames);
    let would = match fits {
        Some(fitting) => format!("at this size at most {fitting} frames fit"),
        None => "not even one frame of this size fits, so ask for a smaller size".to_owned(),
    };
    let sentence = format!(
        "{frames} frames of {width}x{height} need {needed_bytes} bytes of memory, and there are {budget_bytes}; {would}"
    );
    Err(ApiError::body(sentence).with_code("does_not_fit"))
}

/// The length in seconds, in as few digits as say it to a hundredth.
fn duration(frames: usize, fps: u32) -> String {
    let text = format!("{:.2}", frames as f64 / f64::from(fps));
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_sizes_are_written_and_read_as_the_api_does() {
        assert_eq!(
            (duration(81, 16).as_str(), duration(64, 16).as_str(), duration(5, 16).as_str()),
            ("5.06", "4", "0.31")
        );
        assert_eq!(parse_size("832x480").unwrap(), (832, 480));
        for wrong in ["", "x", "832", "832X480", "-8x8", "8x8x8", "+8x8", "99999999x16", " 8x8"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}

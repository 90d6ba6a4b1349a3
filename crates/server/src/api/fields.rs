//! The body of `POST /v1/videos`, JSON or multipart, into a [`CreateVideo`]. Unknown fields are refused: a misspelt one must not be
//! ignored for the length of a video.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use futures_util::StreamExt;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::order::FPS_MAX;
use crate::job::{Class, Quality};
use crate::nearest::nearest;
use crate::wire::CreateVideo;

/// What is read of a body that is too long before it is refused, so that its client hears why.
const DRAINED_BYTES_MAX: usize = 1 << 20;

/// How long more is waited for of a body that is too long by its own account.
const DRAINED_PAUSE_MAX: Duration = Duration::from_millis(250);

/// Reads a body of at most `bytes_max` that arrives within `patience`. One that says itself that it is longer is not waited for.
pub(super) async fn read_body(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    patience: Duration,
) -> Result<Vec<u8>, ApiError> {
    if body.size_hint().lower() > bytes_max as u64 {
        // Who asks first whether to send it has not begun, and is not to.
        if !headers.contains_key(header::EXPECT) {
            let most = bytes_max.saturating_add(DRAINED_BYTES_MAX);
            drop(tokio::time::timeout(patience, drain(body, most)).await);
        }
        return Err(too_long(bytes_max));
    }
    let whole = async {
        let (mut chunks, mut bytes, mut drained_bytes) = (body.into_data_stream(), Vec::new(), 0);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| ApiError::body("the body ended before its end"))?;
            if drained_bytes == 0 && bytes.len() + chunk.len() <= bytes_max {
                bytes.extend_from_slice(&chunk);
                continue;
            }
            drained_bytes += chunk.len();
            if drained_bytes > DRAINED_BYTES_MAX {
                break;
            }
        }
        if drained_bytes == 0 { Ok(bytes) } else { Err(too_long(bytes_max)) }
    };
    tokio::time::timeout(patience, whole).await.unwrap_or_else(|_elapsed| {
        let sentence = format!("the body did not arrive within {} s", patience.as_secs_f64());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", sentence))
    })
}

fn too_long(bytes_max: usize) -> ApiError {
    let sentence = format!("the body is longer than {bytes_max} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", sentence)
}

/// Takes what comes of a body without a pause, until it is more than `bytes_max`: a client that is cut off while it sends does not
/// hear why.
async fn drain(body: Body, bytes_max: usize) {
    let (mut chunks, mut bytes) = (body.into_data_stream(), 0);
    while bytes <= bytes_max
        && let Ok(Some(Ok(chunk))) = tokio::time::timeout(DRAINED_PAUSE_MAX, chunks.next()).await
    {
        bytes += chunk.len();
    }
}

/// Refuses a body that was packed on its way (RFC 9110, 8.4): nothing unpacks it here, so it would be called broken.
fn refuse_packed(headers: &HeaderMap) -> Result<(), ApiError> {
    let values = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let mut codings = values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let packed = codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"));
    let Some(coding) = packed else { return Ok(()) };
    let shown: String = String::from_utf8_lossy(coding).chars().take(64).collect();
    let sentence = format!("the body has the Content-Encoding {shown:?}; send it as it is, without one");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", sentence))
}

/// The fields of a body, by name. Fields of a form are all text.
pub(super) async fn fields(headers: &HeaderMap, body: Vec<u8>) -> Result<Map<String, Value>, ApiError> {
    refuse_packed(headers)?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => match serde_json::from_slice(&body) {
            Ok(Value::Object(fields)) => refuse_doubled(&body).map(|()| fields),
            Ok(_) => Err(ApiError::body("the body is JSON, but not an object with fields")),
            Err(error) => Err(ApiError::body(format!("the body is not JSON: {error}"))),
        },
        "multipart/form-data" => form_fields(headers, body).await,
        _ => {
            let sentence = "send the request as application/json or multipart/form-data";
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", sentence))
        }
    }
}

/// Of two fields with one name neither can be taken for the one that is meant.
fn refuse_doubled(object: &[u8]) -> Result<(), ApiError> {
    let wrong = |error: serde_json::Error| ApiError::body(format!("the body is not JSON: {error}"));
    let Doubled(doubled) = serde_json::from_slice::<Doubled>(object).map_err(wrong)?;
    doubled.map_or(Ok(()), |name| {
        let shown: String = name.chars().take(64).collect();
        Err(ApiError::body(format!("the body has {shown:?} twice")))
    })
}

/// The first name that an object has a second time.
struct Doubled(Option<String>);

impl<'de> Deserialize<'de> for Doubled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Names)
    }
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = Doubled;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Doubled, M::Error> {
        let (mut seen, mut doubled) = (BTreeSet::new(), None);
        while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            if seen.contains(&name) {
                doubled = doubled.or(Some(name));
            } else {
                seen.insert(name);
            }
        }
        Ok(Doubled(doubled))
    }
}

async fn form_fields(headers: &HeaderMap, body: Vec<u8>) -> Result<Map<String, Value>, ApiError> {
    let wrong = |error: String| ApiError::body(format!("the form cannot be read: {error}"));
    let mut request = Request::new(Body::from(body));
    *request.headers_mut() = headers.clone();
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| wrong(error.body_text()))?;
    let mut fields = Map::new();
    while let Some(field) = form.next_field().await.map_err(|error| wrong(error.body_text()))? {
        let name = field.name().unwrap_or_default().to_owned();
        let text = field.text().await.map_err(|error| wrong(error.body_text()))?;
        if fields.insert(name.clone(), Value::String(text)).is_some() {
            return Err(ApiError::body(format!("the form has {name:?} twice")));
        }
    }
    Ok(fields)
}

/// Fields into a request; `is_form`: numbers may be written as text.
pub(super) fn create_video(mut fields: Map<String, Value>, is_form: bool) -> Result<CreateVideo, ApiError> {
    for refused in ["input_reference", "image", "n", "remix_video_id"] {
        let is_one = refused == "n" && fields.get("n").is_some_and(|n| *n == 1 || *n == "1");
        if fields.remove(refused).is_some_and(|value| !value.is_null()) && !is_one {
            let sentence = format!("{refused} cannot be used here: one video is made, from text only");
            return Err(ApiError::field(refused, sentence).with_code("unsupported_parameter"));
        }
    }
    if let Some(unknown) = fields.keys().find(|name| !CreateVideo::FIELDS.contains(&name.as_str())) {
        let shown: String = unknown.chars().take(64).collect();
        let near = nearest(unknown, &CreateVideo::FIELDS);
        let sentence = format!("there is no field {shown:?}; the nearest is {near}");
        return Err(ApiError::field(shown, sentence).with_code("unknown_parameter"));
    }
    let mut reader = Reader { fields, is_form };
    let prompt = reader.text("prompt")?.ok_or_else(|| {
        ApiError::field("prompt", "prompt is missing; say what the video should show")
            .with_code("missing_parameter")
    })?;
    Ok(CreateVideo {
        prompt,
        model: reader.text("model")?,
        seconds: reader.text_or_number("seconds")?,
        size: reader.text("size")?,
        num_frames: reader.whole("num_frames", "from 1 on")?,
        fps: reader.whole("fps", &format!("from 1 to {FPS_MAX}"))?,
        seed: reader.whole("seed", &format!("from 0 to {}", u64::MAX))?,
        num_inference_steps: reader.whole("num_inference_steps", "from 1 on")?,
        negative_prompt: reader.text("negative_prompt")?,
        guidance_scale: reader.real("guidance_scale")?,
        guidance_scale_2: reader.real("guidance_scale_2")?,
        boundary_ratio: reader.real("boundary_ratio")?,
        flow_shift: reader.real("flow_shift")?,
        priority: reader.name("priority", Class::from_name, "interactive, standard or background")?,
        quality: reader.name("quality", Quality::from_name, "exact, balanced or draft")?,
        deadline_s: reader.real("deadline_s")?,
        webhook: reader.text("webhook")?,
    })
}

/// Fields of a form whose text may be any, `null` too.
const FREE_TEXT: [&str; 2] = ["prompt", "negative_prompt"];

/// Takes fields out by name and type. A field that is null is not there; a form can only write that as text.
struct Reader {
    fields: Map<String, Value>,
    is_form: bool,
}

impl Reader {
    fn take(&mut self, name: &str) -> Option<Value> {
        let is_null_of_form = |value: &Value| self.is_form && !FREE_TEXT.contains(&name) && *value == "null";
        self.fields.remove(name).filter(|value| !value.is_null() && !is_null_of_form(value))
    }

    fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::field(name, format!("{name} is text"))),
        }
    }

    fn text_or_number(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.fields.get(name) {
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            _ => self.text(name),
        }
    }

    /// A whole number of which a client is told that it lies in `range`; that is checked with everything else.
    fn whole<T: TryFrom<u64>>(&mut self, name: &'static str, range: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = match &value {
            Value::String(text) if self.is_form => text.trim().parse().ok(),
            other => other.as_u64(),
        };
        let wrong = || ApiError::field(name, format!("{name} is a whole number {range}"));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(wrong).map(Some)
    }

    fn real(&mut self, name: &'static str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = match &value {
            Value::String(text) if self.is_form => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        let wrong = || ApiError::field(name, format!("{name} is a number"));
        number.filter(|number| number.is_finite()).ok_or_else(wrong).map(Some)
    }

    fn name<T>(
        &mut self,
        name: &'static str,
        known: impl Fn(&str) -> Option<T>,
        names: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        known(&text).ok_or_else(|| ApiError::field(name, format!("{name} is {names}"))).map(Some)
    }
}

//! RGB frames into H.264 access units: openh264 on one thread at a fixed quantiser.
//!
//! Baseline profile (no B-frames, so decoding order is display order and no edit list is needed), one slice,
//! one temporal layer. The same frames give the same bytes: one thread, no rate control, no clock.

use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange, RateControlMode,
    SpsPpsStrategy, VuiConfig,
};
use openh264::formats::YUVSlices;
use serde::{Deserialize, Serialize};

use super::colour::Yuv420;
use super::error::{Result, VideoError};
use super::settings::{Quality, VideoSettings};

/// `nal_unit_type` of parameter sets (ITU-T H.264 table 7-1).
const NAL_SPS: u8 = 7;
const NAL_PPS: u8 = 8;

/// Bits per pixel that the encoder is told to expect. The quantiser is fixed, so this only picks the level
/// announced in the stream.
const EXPECTED_BITS_PER_PIXEL: u64 = 1;
const MAX_EXPECTED_BITS_PER_S: u64 = 50_000_000;

/// One encoded frame as MP4 stores it: every NAL unit behind its length in 4 big-endian bytes, no parameter sets.
#[derive(Debug, Default)]
pub(super) struct AccessUnit {
    pub(super) bytes: Vec<u8>,
    pub(super) is_keyframe: bool,
}

/// The sequence and picture parameter sets, without start codes. They stay the same for the whole video.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ParameterSets {
    pub(super) sps: Vec<u8>,
    pub(super) pps: Vec<u8>,
}

/// What openh264 returns when a frame's code does not fit its output buffer: it wants room for one and a half times the
/// code in a buffer of the raw picture's size, so anything past 8 bits per pixel, which only noise needs.
const OUTPUT_BUFFER_FULL: i64 = 3;
/// How much coarser such a frame is tried again: half a bit per coefficient.
const COARSER_QP: u8 = 3;

/// An encoder with its scratch picture.
pub(super) struct H264Encoder {
    encoder: Encoder,
    settings: VideoSettings,
    /// The settings' quality, or coarser from the first frame that was too noisy for it.
    qp: u8,
    picture: Yuv420,
    unit: AccessUnit,
    parameter_sets: ParameterSets,
    frames: usize,
    /// The next frame begins a segment: a new encoder takes it.
    begins_segment: bool,
}

impl H264Encoder {
    /// # Errors
    /// [`VideoError::Encoder`] if openh264 cannot be started.
    pub(super) fn new(settings: &VideoSettings) -> Result<Self> {
        let qp = settings.quality.qp();
        Ok(Self {
            encoder: start(settings, qp).map_err(|e| VideoError::encoder(0, reason(&e)))?,
            settings: *settings,
            qp,
            picture: Yuv420::new(settings.width, settings.height),
            unit: AccessUnit::default(),
            parameter_sets: ParameterSets::default(),
            frames: 0,
            begins_segment: false,
        })
    }

    /// Ends a segment: the next frame's code, and that of all after it, depends on no frame before it. What openh264 keeps from
    /// frame to frame cannot be saved, so a video that is gone on with later goes on from here.
    pub(super) fn end_segment(&mut self) {
        self.begins_segment = self.frames > 0;
    }

    /// Whether a segment has just ended, or nothing has been encoded yet.
    pub(super) fn is_between_segments(&self) -> bool {
        self.begins_segment || self.frames == 0
    }

    /// Makes a fresh encoder what one was that had encoded `frames` frames and had just ended a segment.
    pub(super) fn restore(&mut self, frames: usize, parameter_sets: ParameterSets) {
        self.frames = frames;
        self.parameter_sets = parameter_sets;
        self.begins_segment = frames > 0;
    }

    /// Encodes one frame `[height, width, 3]`; returns its code and the video's parameter sets.
    ///
    /// # Errors
    /// [`VideoError::Encoder`] if openh264 fails, drops the frame or changes its parameter sets midway.
    pub(super) fn encode(&mut self, rgb: &[f32]) -> Result<(&AccessUnit, &ParameterSets)> {
        self.picture.write_rgb(rgb);
        let frame = self.frames;
        if std::mem::take(&mut self.begins_segment) {
            self.qp = self.settings.quality.qp();
            self.encoder =
                start(&self.settings, self.qp).map_err(|e| VideoError::encoder(frame, reason(&e)))?;
        }
        let mut outcome = self.encode_picture();
        while self.qp < Quality::COARSEST_QP && is_output_buffer_full(&outcome) {
            self.qp = (self.qp + COARSER_QP).min(Quality::COARSEST_QP);
            // After this failure openh264 has freed its state; the next picture starts a new one with a keyframe.
            outcome = start(&self.settings, self.qp).and_then(|encoder| {
                self.encoder = encoder;
                self.encode_picture()
            });
        }
        let sets = outcome.map_err(|e| VideoError::encoder(frame, reason(&e)))?;
        if self.unit.bytes.is_empty() {
            return Err(VideoError::encoder(frame, "it dropped the frame"));
        }
        if frame == 0 {
            self.parameter_sets = sets;
        } else if sets != ParameterSets::default() && sets != self.parameter_sets {
            return Err(VideoError::encoder(frame, "its parameter sets changed"));
        }
        self.frames += 1;
        Ok((&self.unit, &self.parameter_sets))
    }

    /// Encodes `picture` into `unit`; returns the parameter sets that came with it, empty if none did.
    fn encode_picture(&mut self) -> std::result::Result<ParameterSets, openh264::Error> {
        let Yuv420 { width, height, luma, cb, cr } = &self.picture;
        let planes = YUVSlices::new((luma, cb, cr), (*width, *height), (*width, width / 2, width / 2));
        let stream = self.encoder.encode(&planes)?;

        self.unit.bytes.clear();
        self.unit.is_keyframe = matches!(stream.frame_type(), FrameType::IDR);
        let mut sets = ParameterSets::default();
        for layer in (0..stream.num_layers()).filter_map(|i| stream.layer(i)) {
            for nal in (0..layer.nal_count()).filter_map(|i| layer.nal_unit(i)).map(without_start_code) {
                match nal.first().map(|header| header & 0x1f) {
                    Some(NAL_SPS) => sets.sps = nal.to_vec(),
                    Some(NAL_PPS) => sets.pps = nal.to_vec(),
                    Some(_) => append_nal(&mut self.unit.bytes, nal)?,
                    None => {}
                }
            }
        }
        Ok(sets)
    }

    /// The parameter sets; empty before the first frame.
    pub(super) fn parameter_sets(&self) -> &ParameterSets {
        &self.parameter_sets
    }
}

fn start(settings: &VideoSettings, qp: u8) -> std::result::Result<Encoder, openh264::Error> {
    Encoder::with_api_config(OpenH264API::from_source(), config(settings, qp))
}

fn is_output_buffer_full<T>(outcome: &std::result::Result<T, openh264::Error>) -> bool {
    outcome.as_ref().is_err_and(|e| e.native_code() == OUTPUT_BUFFER_FULL)
}

/// openh264 gives either a code of its own or a message of the wrapper around it.
fn reason(error: &openh264::Error) -> String {
    match error.native_code() {
        0 => error.to_string(),
        code => format!("openh264 returned code {code}"),
    }
}

fn config(settings: &VideoSettings, qp: u8) -> EncoderConfig {
    EncoderConfig::new()
        .num_threads(1)
        // The mode that neither measures bits nor skips frames yet honours the quantiser range: "off" would
        // ignore the range and use 26.
        .rate_control_mode(RateControlMode::Bufferbased)
        .qp(QpRange::new(qp, qp))
        .bitrate(BitRate::from_bps(expected_bits_per_s(settings)))
        .skip_frames(false)
        .max_frame_rate(frame_rate(settings.fps))
        .intra_frame_period(IntraFramePeriod::from_num_frames(settings.keyframe_interval_frames()))
        .sps_pps_strategy(SpsPpsStrategy::ConstantId)
        // Each of these lets the encoder move the quantiser or skip blocks on its own judgement.
        .adaptive_quantization(false)
        .background_detection(false)
        .scene_change_detect(false)
        .vui(VuiConfig::bt709())
}

fn expected_bits_per_s(settings: &VideoSettings) -> u32 {
    let pixels = (settings.width * settings.height) as u64;
    let bits_per_s = pixels * u64::from(settings.fps) * EXPECTED_BITS_PER_PIXEL;
    u32::try_from(bits_per_s.min(MAX_EXPECTED_BITS_PER_S)).expect("the maximum fits")
}

fn frame_rate(fps: u32) -> FrameRate {
    FrameRate::from_hz(fps as f32)
}

/// Annex B start codes are two or more zero bytes and a one.
fn without_start_code(nal: &[u8]) -> &[u8] {
    let zeros = nal.iter().take_while(|&&byte| byte == 0).count();
    match nal.get(zeros) {
        Some(1) if zeros >= 2 => &nal[zeros + 1..],
        _ => nal,
    }
}

fn append_nal(unit: &mut Vec<u8>, nal: &[u8]) -> std::result::Result<(), openh264::Error> {
    let len = u32::try_from(nal.len())?;
    unit.extend_from_slice(&len.to_be_bytes());
    unit.extend_from_slice(nal);
    Ok(())
}

impl std::fmt::Debug for H264Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H264Encoder")
            .field("width", &self.picture.width)
            .field("height", &self.picture.height)
            .field("frames", &self.frames)
            .field("qp", &self.qp)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_codes_of_either_length_are_removed_and_nothing_else_is() {
        assert_eq!(without_start_code(&[0, 0, 0, 1, 0x67, 0]), [0x67, 0]);
        assert_eq!(without_start_code(&[0, 0, 1, 0x65]), [0x65]);
        assert_eq!(without_start_code(&[0x41, 0, 0, 1]), [0x41, 0, 0, 1]);
    }
}

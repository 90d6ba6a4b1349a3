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

use super::colour::Yuv420;
use super::error::{Result, VideoError};
use super::settings::VideoSettings;

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
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct ParameterSets {
    pub(super) sps: Vec<u8>,
    pub(super) pps: Vec<u8>,
}

/// An encoder with its scratch picture.
pub(super) struct H264Encoder {
    encoder: Encoder,
    picture: Yuv420,
    unit: AccessUnit,
    parameter_sets: ParameterSets,
    frames: usize,
}

impl H264Encoder {
    /// # Errors
    /// [`VideoError::Encoder`] if openh264 cannot be started.
    pub(super) fn new(settings: &VideoSettings) -> Result<Self> {
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config(settings))
            .map_err(|e| VideoError::Encoder { frame: 0, reason: e.to_string() })?;
        Ok(Self {
            encoder,
            picture: Yuv420::new(settings.width, settings.height),
            unit: AccessUnit::default(),
            parameter_sets: ParameterSets::default(),
            frames: 0,
        })
    }

    /// Encodes one frame `[height, width, 3]`.
    ///
    /// # Errors
    /// [`VideoError::Encoder`] if openh264 fails, drops the frame or changes its parameter sets midway.
    pub(super) fn encode(&mut self, rgb: &[f32]) -> Result<&AccessUnit> {
        self.picture.write_rgb(rgb);
        let frame = self.frames;
        let refuse = |reason: String| VideoError::Encoder { frame, reason };
        let Yuv420 { width, height, luma, cb, cr } = &self.picture;
        let planes = YUVSlices::new((luma, cb, cr), (*width, *height), (*width, width / 2, width / 2));
        let stream = self.encoder.encode(&planes).map_err(|e| refuse(e.to_string()))?;

        self.unit.bytes.clear();
        self.unit.is_keyframe = matches!(stream.frame_type(), FrameType::IDR);
        let mut sets = ParameterSets::default();
        for layer in (0..stream.num_layers()).filter_map(|i| stream.layer(i)) {
            for nal in (0..layer.nal_count()).filter_map(|i| layer.nal_unit(i)).map(without_start_code) {
                match nal.first().map(|header| header & 0x1f) {
                    Some(NAL_SPS) => sets.sps = nal.to_vec(),
                    Some(NAL_PPS) => sets.pps = nal.to_vec(),
                    Some(_) => append_nal(&mut self.unit.bytes, nal).map_err(refuse)?,
                    None => {}
                }
            }
        }
        if self.unit.bytes.is_empty() {
            return Err(refuse("it dropped the frame".to_owned()));
        }
        if frame == 0 {
            self.parameter_sets = sets;
        } else if sets != ParameterSets::default() && sets != self.parameter_sets {
            return Err(refuse("its parameter sets changed".to_owned()));
        }
        self.frames += 1;
        Ok(&self.unit)
    }

    /// The parameter sets; empty before the first frame.
    pub(super) fn parameter_sets(&self) -> &ParameterSets {
        &self.parameter_sets
    }
}

fn config(settings: &VideoSettings) -> EncoderConfig {
    let qp = settings.quality.qp();
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

fn append_nal(unit: &mut Vec<u8>, nal: &[u8]) -> std::result::Result<(), String> {
    let len = u32::try_from(nal.len()).map_err(|_| "a NAL unit is longer than 4 GiB".to_owned())?;
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

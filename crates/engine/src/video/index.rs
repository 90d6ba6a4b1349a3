//! The `ftyp` and `moov` boxes of a video with one constant-rate H.264 track (ISO/IEC 14496-12 and -15).
//!
//! `mp4-atom` writes the boxes: typed `colr`, `avcC`, signed edit lists and the fragment boxes, frequent releases, and it
//! never holds media. `mp4` 0.14 cannot tag colours; `muxide` 0.5 cannot either and holds every frame until the end.

use mp4_atom::{
    Avc1, Avcc, Codec, Colr, Dinf, Dref, DrefEntry, Encode, Ftyp, Hdlr, Mdhd, Mdia, Minf, Moov, Mvhd, Pasp,
    Stbl, Stco, Stsc, StscEntry, Stsd, Stss, Stsz, StszSamples, Stts, SttsEntry, Tkhd, Trak, Url, Visual,
    Vmhd,
};

use serde::{Deserialize, Serialize};

use super::encoder::ParameterSets;
use super::error::{Result, VideoError};
use super::settings::VideoSettings;

/// BT.709 in the code points of ISO/IEC 23091-2: primaries, transfer and matrix are all 1.
const BT709: u16 = 1;
pub(super) const TRACK_ID: u32 = 1;

/// Where each frame lies: 4 bytes a frame, the only thing that grows with the video's length in memory.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SampleTable {
    sizes_bytes: Vec<u32>,
    /// Sample numbers from 1, as `stss` counts them.
    keyframes: Vec<u32>,
}

impl SampleTable {
    /// # Errors
    /// [`VideoError::Container`] past 2^32 frames or a frame of 4 GiB.
    pub(super) fn push(&mut self, bytes: usize, is_keyframe: bool) -> Result<()> {
        let too_large = |_| VideoError::Container("a frame or their number passes 32 bits".to_owned());
        self.sizes_bytes.push(u32::try_from(bytes).map_err(too_large)?);
        if is_keyframe {
            self.keyframes.push(u32::try_from(self.sizes_bytes.len()).map_err(too_large)?);
        }
        Ok(())
    }

    pub(super) fn frames(&self) -> usize {
        self.sizes_bytes.len()
    }

    /// Length of each frame's code, and whether it is a keyframe, in order.
    pub(super) fn samples(&self) -> impl Iterator<Item = (usize, bool)> {
        let mut keyframes = self.keyframes.iter().peekable();
        (1..).zip(&self.sizes_bytes).map(move |(number, size)| {
            (*size as usize, keyframes.next_if(|keyframe| **keyframe == number).is_some())
        })
    }

    /// Everything that goes before the frames' bytes: `ftyp`, `moov` and the header of `mdat`.
    ///
    /// # Errors
    /// [`VideoError::Container`] if a value does not fit its box.
    pub(super) fn head(&self, settings: &VideoSettings, sets: &ParameterSets) -> Result<Vec<u8>> {
        // The boxes' length does not depend on the offset in them, so one dry run measures it.
        let len = self.head_at(0, settings, sets)?.len();
        let first_frame_at = u32::try_from(len)
            .map_err(|_| VideoError::Container("the index is longer than 4 GiB".to_owned()))?;
        self.head_at(first_frame_at, settings, sets)
    }

    fn head_at(
        &self,
        first_frame_at: u32,
        settings: &VideoSettings,
        sets: &ParameterSets,
    ) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        file_type().encode(&mut head).map_err(container)?;
        self.movie(first_frame_at, settings, sets)?.encode(&mut head).map_err(container)?;
        head.extend_from_slice(&media_data_header(self.sizes_bytes.iter().map(|&s| u64::from(s)).sum()));
        Ok(head)
    }

    /// The index of the frames there are; those of a video without any go before fragments.
    pub(super) fn movie(
        &self,
        first_frame_at: u32,
        settings: &VideoSettings,
        sets: &ParameterSets,
    ) -> Result<Moov> {
        let timescale = settings.timescale();
        let duration = self.sizes_bytes.len() as u64 * u64::from(settings.ticks_per_frame());
        let (width, height) = edges(settings)?;
        let tkhd = Tkhd {
            track_id: TRACK_ID,
            duration,
            width: width.into(),
            height: height.into(),
            enabled: true,
            in_movie: true,
            ..Tkhd::default()
        };
        let minf = Minf {
            vmhd: Some(Vmhd::default()),
            dinf: Dinf { dref: Dref { entries: vec![DrefEntry::Url(Url::default())] } },
            stbl: self.sample_boxes(first_frame_at, settings, sets)?,
            ..Minf::default()
        };
        let mdia = Mdia {
            mdhd: Mdhd { timescale, duration, language: "und".to_owned(), ..Mdhd::default() },
            hdlr: Hdlr { handler: b"vide".into(), name: "evanesce".to_owned() },
            minf,
        };
        Ok(Moov {
            mvhd: Mvhd {
                timescale,
                duration,
                rate: 1.into(),
                volume: 1.into(),
                next_track_id: TRACK_ID + 1,
                ..Mvhd::default()
            },
            trak: vec![Trak { tkhd, mdia, ..Trak::default() }],
            ..Moov::default()
        })
    }

    /// All frames lie in one chunk, if there are any: with a single track there is nothing to interleave.
    fn sample_boxes(
        &self,
        first_frame_at: u32,
        settings: &VideoSettings,
        sets: &ParameterSets,
    ) -> Result<Stbl> {
        let frames = u32::try_from(self.sizes_bytes.len())
            .map_err(|_| VideoError::Container("more than 2^32 frames".to_owned()))?;
        // A video without frames, which goes before fragments, has no chunk; fragments say themselves what a keyframe is.
        let mut boxes = Stbl {
            stsd: Stsd { codecs: vec![Codec::Avc1(sample_entry(settings, sets)?)] },
            stsz: Stsz { samples: StszSamples::Different { sizes: self.sizes_bytes.clone() } },
            stco: Some(Stco::default()),
            ..Stbl::default()
        };
        if frames > 0 {
            let duration = SttsEntry { sample_count: frames, sample_delta: settings.ticks_per_frame() };
            boxes.stts = Stts { entries: vec![duration] };
            boxes.stss = Some(Stss { entries: self.keyframes.clone() });
            let chunk = StscEntry { first_chunk: 1, samples_per_chunk: frames, sample_description_index: 1 };
            boxes.stsc = Stsc { entries: vec![chunk] };
            boxes.stco = Some(Stco { entries: vec![first_frame_at] });
        }
        Ok(boxes)
    }
}

pub(super) fn file_type() -> Ftyp {
    Ftyp {
        major_brand: b"isom".into(),
        minor_version: 512,
        compatible_brands: [b"isom", b"iso2", b"avc1", b"mp41"].map(Into::into).to_vec(),
    }
}

fn sample_entry(settings: &VideoSettings, sets: &ParameterSets) -> Result<Avc1> {
    let (width, height) = edges(settings)?;
    Ok(Avc1 {
        visual: Visual { data_reference_index: 1, width, height, ..Visual::default() },
        avcc: Avcc::new(&sets.sps, &sets.pps).map_err(container)?,
        colr: Some(Colr::new(BT709, BT709, BT709, false).map_err(container)?),
        pasp: Some(Pasp::new(1, 1).map_err(container)?),
        ..Avc1::default()
    })
}

fn edges(settings: &VideoSettings) -> Result<(u16, u16)> {
    let edge = |px| u16::try_from(px).map_err(|_| VideoError::Container(format!("{px} pixels pass 16 bits")));
    Ok((edge(settings.width)?, edge(settings.height)?))
}

/// Header of the box that holds the frames: 8 bytes, or 16 with a 64-bit size.
pub(super) fn media_data_header(payload_bytes: u64) -> Vec<u8> {
    match u32::try_from(payload_bytes + 8) {
        Ok(size) => [&size.to_be_bytes()[..], b"mdat"].concat(),
        Err(_) => [&1u32.to_be_bytes()[..], b"mdat", &(payload_bytes + 16).to_be_bytes()].concat(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as the argument of map_err")]
pub(super) fn container(error: mp4_atom::Error) -> VideoError {
    VideoError::Container(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_beyond_four_gibibytes_gets_a_64_bit_size() {
        assert_eq!(media_data_header(12), [0, 0, 0, 20, b'm', b'd', b'a', b't']);
        let large = media_data_header(1 << 32);
        assert_eq!(large[..8], [0, 0, 0, 1, b'm', b'd', b'a', b't']);
        assert_eq!(large[8..], ((1u64 << 32) + 16).to_be_bytes());
    }
}

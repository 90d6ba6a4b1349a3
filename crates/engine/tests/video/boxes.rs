//! A reader of MP4 boxes and H.264 sequence parameter sets, written from the standards and sharing nothing with the
//! writer.

/// The body of the first box at `path` ("moov/trak/mdia/mdhd").
pub(crate) fn find<'a>(file: &'a [u8], path: &str) -> &'a [u8] {
    path.split('/').fold(file, |within, kind| {
        let found = boxes(within).into_iter().find(|(k, _)| k == kind);
        found.unwrap_or_else(|| panic!("no {kind} of {path}")).1
    })
}

/// Kinds and bodies of the boxes that `bytes` consists of.
pub(crate) fn boxes(mut bytes: &[u8]) -> Vec<(String, &[u8])> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let kind = String::from_utf8(bytes[4..8].to_vec()).unwrap();
        let (header, size) = match u32_at(bytes, 0) {
            1 => (16, usize::try_from(u64_at(bytes, 8)).unwrap()),
            size => (8, size as usize),
        };
        found.push((kind, &bytes[header..size]));
        bytes = &bytes[size..];
    }
    found
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// (timescale, duration in ticks) of an `mvhd` or `mdhd`, either version.
pub(crate) fn time(header: &[u8]) -> (u32, u64) {
    match header[0] {
        0 => (u32_at(header, 12), u64::from(u32_at(header, 16))),
        1 => (u32_at(header, 20), u64_at(header, 24)),
        version => panic!("version {version}"),
    }
}

/// The numbers of a table box with a count at `at`.
fn table(body: &[u8], at: usize) -> Vec<u32> {
    (0..u32_at(body, at) as usize).map(|i| u32_at(body, at + 4 + 4 * i)).collect()
}

pub(crate) const STBL: &str = "moov/trak/mdia/minf/stbl";

/// Sample numbers (from 1) of the keyframes.
pub(crate) fn keyframes(file: &[u8]) -> Vec<u32> {
    table(find(file, &format!("{STBL}/stss")), 4)
}

/// (count, ticks) runs of `stts`.
pub(crate) fn frame_durations(file: &[u8]) -> Vec<(u32, u32)> {
    let stts = find(file, &format!("{STBL}/stts"));
    (0..u32_at(stts, 4) as usize).map(|i| (u32_at(stts, 8 + 8 * i), u32_at(stts, 12 + 8 * i))).collect()
}

/// Every sample's bytes, found through `stsz`, `stsc` and `stco` as a player does; one chunk expected.
pub(crate) fn samples(file: &[u8]) -> Vec<&[u8]> {
    let sizes = table(find(file, &format!("{STBL}/stsz")), 8);
    let stsc = find(file, &format!("{STBL}/stsc"));
    assert_eq!(
        (u32_at(stsc, 4), u32_at(stsc, 12) as usize),
        (1, sizes.len()),
        "one chunk holds every sample"
    );
    let mut at = table(find(file, &format!("{STBL}/stco")), 4)[0] as usize;
    let cut = |size: u32| {
        let sample = &file[at..at + size as usize];
        at += size as usize;
        sample
    };
    sizes.into_iter().map(cut).collect()
}

/// The NAL units of a sample (4-byte lengths).
pub(crate) fn nal_units(mut sample: &[u8]) -> Vec<&[u8]> {
    let mut units = Vec::new();
    while !sample.is_empty() {
        let end = 4 + u32_at(sample, 0) as usize;
        units.push(&sample[4..end]);
        sample = &sample[end..];
    }
    units
}

/// The `avc1` sample entry: its fixed fields, then its boxes.
pub(crate) fn sample_entry(file: &[u8]) -> (&[u8], Vec<(String, &[u8])>) {
    let avc1 = find(&find(file, &format!("{STBL}/stsd"))[8..], "avc1");
    (&avc1[..78], boxes(&avc1[78..]))
}

/// (sps, pps) of an `avcC` that holds one of each.
pub(crate) fn parameter_sets(avcc: &[u8]) -> (&[u8], &[u8]) {
    assert_eq!(avcc[5] & 0x1f, 1, "one sequence parameter set");
    let sps_end = 8 + u16_at(avcc, 6) as usize;
    assert_eq!(avcc[sps_end], 1, "one picture parameter set");
    let pps_end = sps_end + 3 + u16_at(avcc, sps_end + 1) as usize;
    assert_eq!(pps_end, avcc.len(), "nothing follows the parameter sets of a baseline stream");
    (&avcc[8..sps_end], &avcc[sps_end + 3..pps_end])
}

/// What a baseline sequence parameter set says (ITU-T H.264 7.3.2.1.1 and E.1.1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sps {
    pub(crate) profile: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) full_range: bool,
    /// Primaries, transfer, matrix.
    pub(crate) colour: [u32; 3],
}

impl Sps {
    pub(crate) fn parse(nal: &[u8]) -> Self {
        let mut bits = Bits::new(&nal[1..]);
        let profile = bits.take(8);
        bits.take(16); // constraint flags, level
        bits.golomb(); // id
        bits.golomb(); // log2_max_frame_num
        if bits.golomb() == 0 {
            bits.golomb(); // log2_max_pic_order_cnt_lsb
        }
        bits.golomb(); // reference frames
        bits.take(1); // gaps in frame_num
        let (width, height) = ((bits.golomb() + 1) * 16, (bits.golomb() + 1) * 16);
        assert_eq!(bits.take(1), 1, "progressive");
        bits.take(1); // direct_8x8_inference
        if bits.take(1) == 1 {
            assert_eq!([(); 4].map(|()| bits.golomb()), [0; 4], "no cropping");
        }
        assert_eq!(bits.take(1), 1, "video usability information is present");
        if bits.take(1) == 1 {
            bits.take(8); // sample aspect ratio
        }
        if bits.take(1) == 1 {
            bits.take(1); // overscan
        }
        assert_eq!(bits.take(1), 1, "video signal type is present");
        bits.take(3); // video_format
        let full_range = bits.take(1) == 1;
        assert_eq!(bits.take(1), 1, "colour description is present");
        Self { profile, width, height, full_range, colour: [(); 3].map(|()| bits.take(8)) }
    }
}

/// Bits of a NAL unit, emulation prevention removed.
struct Bits {
    bytes: Vec<u8>,
    at: usize,
}

impl Bits {
    fn new(nal: &[u8]) -> Self {
        let is_padding = |i: usize| i >= 2 && nal[i] == 3 && nal[i - 2..i] == [0, 0];
        Self { bytes: (0..nal.len()).filter(|&i| !is_padding(i)).map(|i| nal[i]).collect(), at: 0 }
    }

    fn take(&mut self, count: usize) -> u32 {
        (0..count).fold(0, |value, _| {
            let bit = self.bytes[self.at / 8] >> (7 - self.at % 8) & 1;
            self.at += 1;
            value << 1 | u32::from(bit)
        })
    }

    fn golomb(&mut self) -> u32 {
        let zeros = std::iter::repeat_with(|| self.take(1)).take_while(|&bit| bit == 0).count();
        (1 << zeros) - 1 + self.take(zeros)
    }
}

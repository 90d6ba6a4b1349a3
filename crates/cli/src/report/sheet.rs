//! Pictures inside a page: uncompressed bitmaps in data addresses, which every browser shows.

use evanesce_engine::video::Thumbnail;

/// The pictures in a row that wraps, each with its frame's number.
pub(super) fn contact_sheet(pictures: &[Thumbnail]) -> String {
    let figure = |picture: &Thumbnail| {
        let data = base64::encode(bitmap(picture));
        let Thumbnail { frame, width, height, .. } = picture;
        format!(
            "<figure><img width=\"{width}\" height=\"{height}\" alt=\"frame {frame}\" src=\"data:image/bmp;base64,{data}\"><figcaption>{frame}</figcaption></figure>"
        )
    };
    format!("<div class=\"sheet\">{}</div>", pictures.iter().map(figure).collect::<String>())
}

/// A 24-bit Windows bitmap: two headers, then rows from the bottom up, blue first, each padded to 4 bytes.
fn bitmap(picture: &Thumbnail) -> Vec<u8> {
    const HEADERS: u32 = 14 + 40;
    let row_bytes = (picture.width * 3).next_multiple_of(4);
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let pixels = number(row_bytes * picture.height);
    let mut bytes = b"BM".to_vec();
    for value in [
        HEADERS + pixels,
        0,
        HEADERS,
        40,
        number(picture.width),
        number(picture.height),
        1 | 24 << 16,
        0,
        pixels,
        0,
        0,
        0,
        0,
    ] {
        bytes.extend(value.to_le_bytes());
    }
    for row in picture.rgb.chunks_exact(picture.width * 3).rev() {
        let end = bytes.len() + row_bytes;
        bytes.extend(row.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]));
        bytes.resize(end, 0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_has_its_rows_from_the_bottom_up_in_blue_green_red() {
        let picture = Thumbnail { frame: 4, width: 1, height: 2, rgb: vec![1, 2, 3, 4, 5, 6] };
        let bytes = bitmap(&picture);
        assert_eq!((&bytes[..2], bytes.len()), (&b"BM"[..], 62));
        assert_eq!(bytes[2..6], 62u32.to_le_bytes());
        assert_eq!(bytes[54..], [6, 5, 4, 0, 3, 2, 1, 0]);
        let html = contact_sheet(&[picture]);
        assert!(html.contains("frame 4") && html.contains("data:image/bmp;base64,Qk0"), "{html}");
    }
}

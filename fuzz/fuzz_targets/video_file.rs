//! What `compare` reads, a video or a file of frames, is told by what it holds: its frames are read, or it is refused in words.
#![no_main]

mod scratch;

use evanesce_engine::fidelity::{compare, shape_of};
use evanesce_engine::video::thumbnails;

/// Pixels of all frames together that are decoded, at most: more only takes longer. A file says them before it is decoded.
const PIXELS_MAX: usize = 1 << 20;

// One thread, so that the same input takes the same way.
libfuzzer_sys::fuzz_target!(init: evanesce_engine::use_threads(Some(1)).expect("no pool exists"), |input: &[u8]| {
    let path = scratch::path("input");
    std::fs::write(&path, input).expect("temporary files can be written");
    let Ok(shape) = shape_of(&path) else { return };
    let pixels = shape.into_iter().try_fold(1, usize::checked_mul);
    if pixels.is_some_and(|pixels| pixels <= PIXELS_MAX) {
        drop(thumbnails(&path, 3, 32));
        drop(compare(&path, &path, 3, None));
    }
});

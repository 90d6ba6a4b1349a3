//! Frames into a video file, as a stream: RGB -> YUV 4:2:0 (`colour`) -> H.264 (`encoder`) -> MP4 (`index`, `muxer`)
//! -> a file that appears whole or not at all (`writer`).
//!
//! ```
//! use evanesce_engine::video::{Mp4Writer, VideoSettings};
//!
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("grey.mp4");
//! let settings = VideoSettings::new(64, 64, 16);
//! let mut video = Mp4Writer::create(&path, settings)?;
//! for _ in 0..8 {
//!     video.push(&vec![0.5; settings.frame_len()])?;
//! }
//! assert_eq!(video.finish()?.duration_s, 0.5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod colour;
mod encoder;
mod error;
mod fragments;
mod index;
mod muxer;
mod pool;
mod reader;
mod settings;
mod sink;
mod thumbnails;
mod track;
mod writer;

pub use error::{Result, VideoError};
pub use pool::{EncoderPool, PooledVideo};
pub(crate) use reader::Mp4Reader;
pub use settings::{Quality, VideoSettings};
pub use sink::{FrameSink, SinkState, VideoSummary};
pub use thumbnails::{Thumbnail, thumbnails};
pub use writer::Mp4Writer;
pub(crate) use writer::check_quality;

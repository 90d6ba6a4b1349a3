//! The frames that outlive a chunk, and whoever holds them.
//!
//! A slot belongs to one causal convolution. What it keeps are that convolution's newest input frames, each committed
//! once, never changed, and read a known number of times: after the last reading it is dead.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use crate::error::{Result, WanError};

/// Which half of the VAE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Half {
    /// Pictures to latents.
    Encoder,
    /// Latents to pictures.
    Decoder,
}

/// Where in its half a causal convolution sits. Levels count in forward order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The convolution that the half begins with.
    Input,
    /// The middle block.
    Middle {
        /// Residual block: before (0) or after (1) the attention.
        block: u8,
        /// First (0) or second (1) convolution of the block.
        conv: u8,
    },
    /// A residual block of a level.
    Level {
        /// The level.
        level: u8,
        /// Residual block of the level.
        block: u8,
        /// First (0) or second (1) convolution of the block.
        conv: u8,
    },
    /// The convolution over time that doubles or halves the frame rate after a level.
    Time {
        /// The level.
        level: u8,
    },
    /// The convolution that the half ends with.
    Output,
}

/// Names a slot by its convolution's meaning, so that no order of visiting can mix two up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId {
    /// Which half.
    pub half: Half,
    /// Where in it.
    pub place: Place,
}

impl SlotId {
    /// A number for keys and stored snapshots: distinct for distinct slots, the same in every version.
    #[must_use]
    pub fn code(self) -> u32 {
        let half = match self.half {
            Half::Encoder => 0,
            Half::Decoder => 1,
        };
        let [kind, level, block, conv] = match self.place {
            Place::Input => [0, 0, 0, 0],
            Place::Middle { block, conv } => [1, 0, block, conv],
            Place::Level { level, block, conv } => [2, level, block, conv],
            Place::Time { level } => [3, level, 0, 0],
            Place::Output => [4, 0, 0, 0],
        };
        u32::from_be_bytes([half << 4 | kind, level, block, conv])
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let half = match self.half {
            Half::Encoder => "encoder",
            Half::Decoder => "decoder",
        };
        match self.place {
            Place::Input => write!(f, "{half} input"),
            Place::Middle { block, conv } => write!(f, "{half} middle block {block} conv {conv}"),
            Place::Level { level, block, conv } => {
                write!(f, "{half} level {level} block {block} conv {conv}")
            }
            Place::Time { level } => write!(f, "{half} level {level} time conv"),
            Place::Output => write!(f, "{half} output"),
        }
    }
}

/// A kept frame while it is being read; it stays where it is until this is dropped.
pub trait FeatureFrame {
    /// `[height, width, channels]`.
    fn values(&self) -> &[f32];
}

/// Whoever holds the kept frames of one stream.
///
/// A chunk that ends in an error may have read frames for the last time: go on from a copy taken before it, or not at
/// all.
pub trait FeatureSlots {
    /// Reads a frame that was committed before. `frame_index` counts the frames that the slot's convolution was given,
    /// from the start of the stream, at that convolution's own frame rate.
    ///
    /// # Errors
    /// When the frame is not there (never committed, or given up), or cannot be brought back.
    fn read(&self, slot: SlotId, frame_index: u64) -> Result<Box<dyn FeatureFrame + '_>>;

    /// Keeps a frame `[height, width, channels]`. It will be read exactly `readings` times, in as many following
    /// chunks, one after another, and is dead when the last reading is dropped: its bytes may be freed there already.
    ///
    /// # Errors
    /// When there is no room, or the frame was committed before.
    fn commit(&self, slot: SlotId, frame_index: u64, readings: u32, frame: &[f32]) -> Result<()>;
}

#[derive(Clone)]
struct Kept {
    readings_left: u32,
    values: Rc<[f32]>,
}

/// Kept frames in plain memory: for tests and small tools. A clone is a snapshot of the stream.
#[derive(Clone, Default)]
pub struct MapSlots {
    kept: RefCell<BTreeMap<(SlotId, u64), Kept>>,
}

impl fmt::Debug for MapSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapSlots").field("frames", &self.kept.borrow().len()).finish()
    }
}

impl MapSlots {
    /// Bytes of the frames that are still to be read.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.kept.borrow().values().map(|kept| size_of_val(&*kept.values)).sum()
    }
}

struct MapFrame(Rc<[f32]>);

impl FeatureFrame for MapFrame {
    fn values(&self) -> &[f32] {
        &self.0
    }
}

impl FeatureSlots for MapSlots {
    fn read(&self, slot: SlotId, frame_index: u64) -> Result<Box<dyn FeatureFrame + '_>> {
        let mut all = self.kept.borrow_mut();
        let missing = || refusal(slot, frame_index, "no such frame is kept");
        let kept = all.get_mut(&(slot, frame_index)).ok_or_else(missing)?;
        kept.readings_left -= 1;
        let values = Rc::clone(&kept.values);
        if kept.readings_left == 0 {
            all.remove(&(slot, frame_index));
        }
        Ok(Box::new(MapFrame(values)))
    }

    fn commit(&self, slot: SlotId, frame_index: u64, readings: u32, frame: &[f32]) -> Result<()> {
        assert!(readings > 0, "a frame that nobody reads is not committed");
        let kept = Kept { readings_left: readings, values: frame.into() };
        match self.kept.borrow_mut().insert((slot, frame_index), kept) {
            None => Ok(()),
            Some(_) => Err(refusal(slot, frame_index, "the frame is already kept")),
        }
    }
}

fn refusal(slot: SlotId, frame_index: u64, message: &str) -> WanError {
    WanError::Store {
        what: format!("frame {frame_index} of {slot}"),
        message: message.to_owned(),
        source: None,
    }
}

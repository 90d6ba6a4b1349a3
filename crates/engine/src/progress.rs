//! What a job tells whoever watches it.

/// The stages of a job, in the order they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Prompts into embeddings.
    Text,
    /// Noise into latents.
    Denoise,
    /// Latents into frames; frames are encoded as they come.
    Decode,
    /// Closing the video file.
    Encode,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Self; 4] = [Self::Text, Self::Denoise, Self::Decode, Self::Encode];

    /// The stage's name in logs, reports and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
            Self::Encode => "encode",
        }
    }
}

/// Something that happened in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A video that is made block by block goes on to the next block; denoising and decoding begin anew for each.
    Block {
        /// The block's number, from 0.
        at: usize,
        /// How many blocks the video has.
        n_blocks: usize,
    },
    /// A stage begins; it will take `n_units` units (prompts, steps, latent frames, files).
    Started {
        /// Which stage.
        stage: Stage,
        /// How many units of work it has.
        n_units: usize,
    },
    /// One unit of a stage is done.
    Advanced {
        /// Which stage.
        stage: Stage,
        /// Units done so far, this one included.
        done_units: usize,
    },
    /// A stage has ended.
    Finished {
        /// Which stage.
        stage: Stage,
    },
    /// Frames are about to be handed to the encoder (`true`) or have been taken by it (`false`): lets a watcher tell
    /// encoding from decoding while both run as one stream.
    Encoding(bool),
    /// Something the person who asked should know; nothing failed.
    Notice(&'a str),
}

/// Whoever watches a job. Called on the thread that runs it.
pub trait Observer {
    /// Takes note of an event.
    fn on_event(&mut self, event: Event<'_>);
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn on_event(&mut self, _event: Event<'_>) {}
}

impl<F: FnMut(Event<'_>)> Observer for F {
    fn on_event(&mut self, event: Event<'_>) {
        self(event);
    }
}

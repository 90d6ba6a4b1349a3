//! Keys and values of earlier frames, in videos that are made block by block: how they are stored, and how many of them a block sees.

use std::path::Path;

use evanesce_engine::page_codecs::PageStorage;
use evanesce_engine::request::WINDOW_FRAMES_MAX;
use evanesce_engine::{EngineError, KvOverrides, Model, Request};
use serde::Deserialize;

use super::ConfigError;

/// What holds for every job that is accepted from now on; what is left out is the checkpoint's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PagesConfig {
    /// A codec's name, or a file that says it for every layer.
    pub codec: Option<String>,
    /// Latent frames right before a block that it sees.
    pub window: Option<usize>,
    /// Latent frames at the beginning that every block sees, besides.
    pub sink: Option<usize>,
}

impl PagesConfig {
    /// Takes a file from `directory` on.
    pub(super) fn place_in(&mut self, directory: &Path) {
        if let Some(name) = self.codec.as_mut().filter(|name| PageStorage::is_file(name)) {
            *name = directory.join(&*name).to_string_lossy().into_owned();
        }
    }

    /// Checks windows, and that the codec can be read; whether the checkpoint can have them is seen when it is open.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.storage()?;
        for (key, frames, least) in [("window", self.window, 1), ("sink", self.sink, 0)] {
            if let Some(frames) = frames.filter(|frames| !(least..=WINDOW_FRAMES_MAX).contains(frames)) {
                let sentence =
                    format!("{key} of [pages] is {frames}; it lies between {least} and {WINDOW_FRAMES_MAX}");
                return Err(ConfigError(sentence));
            }
        }
        Ok(())
    }

    fn storage(&self) -> Result<Option<PageStorage>, ConfigError> {
        let storage = self.codec.as_deref().map(PageStorage::open).transpose();
        storage.map_err(|error| refused(&error))
    }
}

fn refused(error: &EngineError) -> ConfigError {
    ConfigError(format!("[pages]: {error}"))
}

/// The same, its file read.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    storage: Option<PageStorage>,
    window: Option<usize>,
    sink: Option<usize>,
}

impl Pages {
    /// Reads what is named and checks it against the checkpoint.
    ///
    /// # Errors
    /// One sentence: no codec, a file that is wrong, or a checkpoint that makes videos at once or has other layers.
    pub(crate) fn open(config: &PagesConfig, model: &Model) -> Result<Self, ConfigError> {
        let pages = Self { storage: config.storage()?, window: config.window, sink: config.sink };
        // Whatever it is about.
        let checked = pages.fill(Request::new("", 0)).check_pages(model.checkpoint());
        checked.map_err(|error| refused(&error))?;
        Ok(pages)
    }

    /// The request with all of it.
    pub(crate) fn fill(&self, request: Request) -> Request {
        let (kv_codec, kv_overrides) = match &self.storage {
            Some(storage) => (Some(storage.codec), storage.overrides.clone()),
            None => (None, KvOverrides::default()),
        };
        Request { kv_codec, kv_overrides, kv_window: self.window, kv_sink: self.sink, ..request }
    }
}

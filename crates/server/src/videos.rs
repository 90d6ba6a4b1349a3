//! Where videos are kept: nothing of a video can be seen before all of it is there, and no answer ever holds a path.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use evanesce_engine::video::{FrameSink, Result, VideoSettings};
use utoipa::ToSchema;

use crate::encoder::Encoder;
use crate::id::VideoId;
use crate::journal::note;

/// What can be read of a finished video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Variant {
    /// The video.
    Video,
    /// One picture of it.
    Thumbnail,
    /// Pictures from all of it, side by side.
    Spritesheet,
}

impl Variant {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::Video, Self::Thumbnail, Self::Spritesheet];

    /// The name in requests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Thumbnail => "thumbnail",
            Self::Spritesheet => "spritesheet",
        }
    }

    /// The variant of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|variant| variant.as_str() == name)
    }

    /// The file's name in a video's directory.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Video => "video.mp4",
            Self::Thumbnail => "thumbnail.jpg",
            Self::Spritesheet => "spritesheet.jpg",
        }
    }

    /// Its media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Video => "video/mp4",
            Self::Thumbnail | Self::Spritesheet => "image/jpeg",
        }
    }
}

/// A place for the files of a video that is being made. Dropped without [`VideoStore::publish`], they are removed.
#[derive(Debug)]
pub struct Draft {
    directory: PathBuf,
    encoder: Arc<Encoder>,
    shown: Arc<Shown>,
    is_published: Arc<AtomicBool>,
}

impl Draft {
    /// Where to write a variant.
    #[must_use]
    pub fn path(&self, variant: Variant) -> PathBuf {
        self.directory.join(variant.file_name())
    }

    /// Begins the video. If it can be read while it grows, what is at its path now stays readable under a name of its own, also when
    /// a finished file takes that path.
    ///
    /// # Errors
    /// [`VideoError`](evanesce_engine::video::VideoError) when it cannot be begun.
    pub(crate) fn begin_video(&self, settings: VideoSettings) -> Result<Box<dyn FrameSink + Send>> {
        let path = self.path(Variant::Video);
        let (video, grows) = self.encoder.open(&path, settings)?;
        if !grows {
            return Ok(video);
        }
        match fs::hard_link(&path, self.directory.join(GROWING)) {
            Ok(()) => {
                self.shown.lock().insert(self.directory.clone(), Arc::clone(&self.is_published));
            }
            Err(error) => note("videos", format_args!("cannot be watched while they are made: {error}")),
        }
        Ok(video)
    }
}

/// The name of a video that is being made, in its draft.
const GROWING: &str = "growing.mp4";

/// The drafts whose video can be read while it grows, by their directory, and whether each is published: only then is what was read
/// of it all that there is.
#[derive(Debug, Default)]
struct Shown(Mutex<BTreeMap<PathBuf, Arc<AtomicBool>>>);

impl Shown {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<AtomicBool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A video that is being made, open to be read.
#[derive(Debug)]
pub struct Growing {
    /// What is there of it; more comes.
    pub(crate) file: File,
    is_published: Arc<AtomicBool>,
}

impl Growing {
    /// Whether this is one more look at the same draft, and not at a later one of the same job.
    pub(crate) fn is_of_same_draft(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.is_published, &other.is_published)
    }

    /// Whether its draft became the video. One that was dropped instead has no end, however far it can be read.
    pub(crate) fn is_published(&self) -> bool {
        self.is_published.load(Ordering::Acquire)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.shown.lock().remove(&self.directory);
        if !self.is_published.load(Ordering::Acquire) {
            // What cannot be removed now is removed when the service starts again.
            drop(fs::remove_dir_all(&self.directory));
        }
    }
}

/// Keeps finished videos. Blocking: call it from threads that may wait for a disk.
pub trait VideoStore: Send + Sync {
    /// A fresh place for the files of a video; `epoch` keeps an old worker's files from a new one's.
    ///
    /// # Errors
    /// When it cannot be made.
    fn draft(&self, id: &VideoId, epoch: i64) -> io::Result<Draft>;

    /// Makes all files of a draft visible at once, and safe from a power cut; replaces what was there.
    ///
    /// # Errors
    /// When that fails: nothing is visible then.
    fn publish(&self, id: &VideoId, draft: Draft) -> io::Result<()>;

    /// Opens a variant to be read; its length comes with it.
    ///
    /// # Errors
    /// `NotFound` when there is no such video.
    fn open(&self, id: &VideoId, variant: Variant) -> io::Result<(File, u64)>;

    /// Opens the video of a draft, as far as it is there.
    ///
    /// # Errors
    /// `NotFound` when there is no such draft, or its video cannot be read while it grows.
    fn open_growing(&self, id: &VideoId, epoch: i64) -> io::Result<Growing>;

    /// Removes a video; there need not be one.
    ///
    /// # Errors
    /// When what is there cannot be removed.
    fn remove(&self, id: &VideoId) -> io::Result<()>;

    /// The names of all videos that are visible.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn ids(&self) -> io::Result<Vec<VideoId>>;
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Videos in a local directory: one directory each, which appears by one rename.
#[derive(Debug)]
pub struct VideoDirectory {
    finished: PathBuf,
    drafts: PathBuf,
    encoder: Arc<Encoder>,
    shown: Arc<Shown>,
}

impl VideoDirectory {
    /// Opens the store in `root`, or makes it, and removes drafts of workers that are gone.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(root: &Path, encoder: Encoder) -> io::Result<Self> {
        let (finished, drafts) = (root.join("videos"), root.join("drafts"));
        let store = Self { finished, drafts, encoder: Arc::new(encoder), shown: Arc::default() };
        fs::create_dir_all(&store.finished)?;
        if store.drafts.exists() {
            fs::remove_dir_all(&store.drafts)?;
        }
        fs::create_dir_all(&store.drafts)?;
        Ok(store)
    }

    fn directory(&self, id: &VideoId) -> PathBuf {
        self.finished.join(id.as_str())
    }

    fn draft_directory(&self, id: &VideoId, epoch: i64) -> PathBuf {
        self.drafts.join(format!("{id}.{epoch}"))
    }
}

impl VideoStore for VideoDirectory {
    fn draft(&self, id: &VideoId, epoch: i64) -> io::Result<Draft> {
        let directory = self.draft_directory(id, epoch);
        fs::create_dir_all(&directory)?;
        let (encoder, shown) = (Arc::clone(&self.encoder), Arc::clone(&self.shown));
        Ok(Draft { directory, encoder, shown, is_published: Arc::default() })
    }

    fn publish(&self, id: &VideoId, draft: Draft) -> io::Result<()> {
        self.shown.lock().remove(&draft.directory);
        remove_if_there(&draft.directory.join(GROWING))?;
        for variant in Variant::ALL {
            File::open(draft.path(variant))?.sync_all()?;
        }
        File::open(&draft.directory)?.sync_all()?;
        // A worker that died between this and its acknowledgement left the same video.
        self.remove(id)?;
        fs::rename(&draft.directory, self.directory(id))?;
        File::open(&self.finished)?.sync_all()?;
        draft.is_published.store(true, Ordering::Release);
        Ok(())
    }

    fn open(&self, id: &VideoId, variant: Variant) -> io::Result<(File, u64)> {
        let file = File::open(self.directory(id).join(variant.file_name()))?;
        let len_bytes = file.metadata()?.len();
        Ok((file, len_bytes))
    }

    fn open_growing(&self, id: &VideoId, epoch: i64) -> io::Result<Growing> {
        let directory = self.draft_directory(id, epoch);
        // While this is held no draft goes or comes, so the file is the listed one's.
        let shown = self.shown.lock();
        let is_published = Arc::clone(shown.get(&directory).ok_or(io::ErrorKind::NotFound)?);
        let file = File::open(directory.join(GROWING))?;
        Ok(Growing { file, is_published })
    }

    fn remove(&self, id: &VideoId) -> io::Result<()> {
        match fs::remove_dir_all(self.directory(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn ids(&self) -> io::Result<Vec<VideoId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.finished)? {
            ids.extend(entry?.file_name().to_str().and_then(VideoId::parse));
        }
        ids.sort();
        Ok(ids)
    }
}

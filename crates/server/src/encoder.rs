//! What turns frames into a video file: the H.264 encoder that is built in, or a program of the machine, such as ffmpeg, that takes raw
//! frames on its standard input. It is named in the configuration; nothing of it is chosen by a client.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use tempfile::NamedTempFile;

use evanesce_engine::video::{
    FrameSink, Mp4Writer, Result, SinkState, VideoError, VideoSettings, VideoSummary,
};

/// How much of a program's words is read when it has ended: the last line of them is told.
const WORDS_BYTES_MAX: u64 = 4096;

/// How long a program may take nothing of a frame.
const TAKES_NOTHING_MAX: Duration = Duration::from_secs(60);

/// How long a program may take to end after its last frame: some write the whole file once more.
const ENDS_MAX: Duration = Duration::from_secs(600);

/// How long a program that was killed is waited for.
const KILLED_MAX: Duration = Duration::from_secs(5);

/// A frame is written in pieces of this size, each of which is progress: what a pipe holds.
const PIECE_BYTES: usize = 64 << 10;

/// How often a program is looked at before it is said to take nothing. Looks are counted, not time: a machine that was halted for an
/// hour misses one of them.
const LOOKS: u32 = 10;

/// The pauses between looks at a program that is to end: they grow from the first to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// What makes the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encoder {
    /// The one that is built in: its videos can be watched while they are made, and be gone on with after a restart.
    #[default]
    BuiltIn,
    /// A program that speaks ffmpeg's options.
    Ffmpeg {
        /// Its name or path.
        program: PathBuf,
        /// What it is told between its input and its output.
        arguments: Vec<String>,
    },
}

impl Encoder {
    /// Whether the program can be run here.
    ///
    /// # Errors
    /// One sentence that says why not.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let Self::Ffmpeg { program, .. } = self else { return Ok(()) };
        let tried = Command::new(program).arg("-version").stdin(Stdio::null()).output();
        let failed = match tried {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => output.status.to_string(),
            Err(error) => error.to_string(),
        };
        Err(format!("ffmpeg of [encoder] is {:?}, which cannot be run: {failed}", program.display()))
    }

    /// A video that is to be at `path`, and whether it can be read there while it grows.
    ///
    /// # Errors
    /// [`VideoError`] when it cannot be begun.
    pub(crate) fn open(
        &self,
        path: &Path,
        settings: VideoSettings,
    ) -> Result<(Box<dyn FrameSink + Send>, bool)> {
        match self {
            Self::BuiltIn => Ok((Box::new(Mp4Writer::create_growing(path, settings)?), true)),
            Self::Ffmpeg { program, arguments } => {
                Ok((Box::new(Piped::start(program, arguments, path, settings, PATIENCE)?), false))
            }
        }
    }
}

/// How long a program is waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// While it takes nothing of a frame.
    takes_nothing: Duration,
    /// After its last frame.
    ends: Duration,
}

const PATIENCE: Patience = Patience { takes_nothing: TAKES_NOTHING_MAX, ends: ENDS_MAX };

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug)]
enum Refused {
    /// The program reads no more: it has ended, or is about to.
    Ended,
    /// It has taken nothing for too long.
    Stalled,
}

/// Writes frames to a program, on a thread that it alone can hold up. The thread ends when this is dropped: at once when it waits for
/// a frame, and otherwise as soon as nobody holds the other end of the pipe.
#[derive(Debug)]
struct Feeder {
    frames: SyncSender<Vec<u8>>,
    /// Every frame comes back when it is written.
    written: Receiver<Vec<u8>>,
    pieces: Arc<AtomicU64>,
}

impl Feeder {
    fn start(mut input: ChildStdin) -> io::Result<Self> {
        let (frames, to_write) = mpsc::sync_channel::<Vec<u8>>(1);
        let (give_back, written) = mpsc::sync_channel(1);
        let pieces = Arc::new(AtomicU64::new(0));
        let done = Arc::clone(&pieces);
        thread::Builder::new().name("encoder-input".to_owned()).spawn(move || {
            for frame in to_write {
                for piece in frame.chunks(PIECE_BYTES) {
                    if input.write_all(piece).is_err() {
                        return;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                if give_back.send(frame).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { frames, written, pieces })
    }

    /// Has the program take a frame, and gives it back.
    fn give(&self, frame: Vec<u8>, patience: Duration) -> std::result::Result<Vec<u8>, Refused> {
        // There is always room: the frame before has come back.
        self.frames.send(frame).map_err(|_| Refused::Ended)?;
        let (mut idle, mut seen) = (0, self.pieces.load(Ordering::Relaxed));
        while idle < LOOKS {
            match self.written.recv_timeout(patience / LOOKS) {
                Ok(frame) => return Ok(frame),
                Err(RecvTimeoutError::Disconnected) => return Err(Refused::Ended),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let pieces = self.pieces.load(Ordering::Relaxed);
            idle = if pieces == seen { idle + 1 } else { 0 };
            seen = pieces;
        }
        Err(Refused::Stalled)
    }
}

/// How a program has ended, or `None` if it has not after `patience`. The standard library waits for ever or not at all.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    // Nothing is ever sent here: it is what the pauses wait for.
    let (_sender, never) = mpsc::sync_channel::<()>(0);
    let [mut pause, longest] = PAUSES;
    let mut waited = Duration::ZERO;
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || waited >= patience {
            return Ok(ended);
        }
        if never.recv_timeout(pause).is_err() {
            waited += pause;
        }
        pause = (pause * 2).min(longest);
    }
}

/// Frames on their way to another program. What such a program has in it cannot be saved, so the frames themselves are kept beside the
/// video until it is done: one that goes on after a restart is given them all again.
#[derive(Debug)]
struct Piped {
    /// What the program is called in sentences.
    name: String,
    /// The process, until it is stopped.
    child: Option<Child>,
    /// Its input, until it is closed.
    feeder: Option<Feeder>,
    patience: Patience,
    /// Why the program took a frame no more: the video is then lost.
    lost: Option<String>,
    path: PathBuf,
    settings: VideoSettings,
    /// One frame `[height, width, 3]` of bytes.
    rgb: Vec<u8>,
    frames: usize,
    /// All frames so far, as the program got them.
    spool: NamedTempFile,
    /// What the program says. A file and no pipe: nobody reads it before the end, and a full pipe would stop the program.
    said: File,
}

impl Piped {
    fn start(
        program: &Path,
        arguments: &[String],
        path: &Path,
        settings: VideoSettings,
        patience: Patience,
    ) -> Result<Self> {
        let size = format!("{}x{}", settings.width, settings.height);
        let rate = settings.fps.to_string();
        let mut command = Command::new(program);
        command.args([
            "-hide_banner",
            "-loglevel",
            "error",
            "-y",
            "-f",
            "rawvideo",
            "-pixel_format",
            "rgb24",
        ]);
        command.args(["-video_size", &size, "-framerate", &rate, "-i", "pipe:0"]).args(arguments).arg(path);
        // The program is started last, so that whatever fails before leaves none behind.
        let directory = path.parent().unwrap_or(Path::new("."));
        let unwritable = |source| VideoError::Io { path: path.to_path_buf(), source };
        let spool = tempfile::Builder::new().prefix(".frames-").tempfile_in(directory).map_err(unwritable)?;
        let said = tempfile::tempfile_in(directory).map_err(unwritable)?;
        let words = Stdio::from(said.try_clone().map_err(unwritable)?);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(words).spawn();
        let mut child = spawned.map_err(|error| failed(0, &format!("it cannot be run: {error}")))?;
        let input = child.stdin.take();
        let mut piped = Self {
            name: program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned(),
            child: Some(child),
            feeder: None,
            patience,
            lost: None,
            path: path.to_path_buf(),
            settings,
            rgb: vec![0; settings.frame_len()],
            frames: 0,
            spool,
            said,
        };
        // From here on the program is stopped when something fails.
        let feeder = input.map(Feeder::start).transpose();
        piped.feeder = feeder.map_err(|error| failed(0, &format!("it cannot be given frames: {error}")))?;
        Ok(piped)
    }

    /// Gives the frame in `rgb` to the program, and keeps it.
    fn give(&mut self) -> Result<()> {
        if let Some(reason) = &self.lost {
            return Err(failed(self.frames, reason));
        }
        let kept = self.spool.write_all(&self.rgb);
        kept.map_err(|source| VideoError::Io { path: self.path.clone(), source })?;
        match self.feed() {
            Ok(()) => {
                self.frames += 1;
                Ok(())
            }
            Err(reason) => {
                let error = failed(self.frames, &reason);
                self.lost = Some(reason);
                Err(error)
            }
        }
    }

    /// Has the program take the frame in `rgb`, which is gone if it does not.
    ///
    /// # Errors
    /// Why it did not.
    fn feed(&mut self) -> std::result::Result<(), String> {
        let frame = std::mem::take(&mut self.rgb);
        let patience = self.patience.takes_nothing;
        let given = match &self.feeder {
            Some(feeder) => feeder.give(frame, patience),
            None => Err(Refused::Ended),
        };
        match given {
            Ok(frame) => {
                self.rgb = frame;
                Ok(())
            }
            Err(Refused::Ended) => match self.end(patience) {
                Ok(_) => Err(self.last_words()),
                Err(reason) => Err(reason),
            },
            Err(Refused::Stalled) => {
                self.stop();
                Err(format!("{} took nothing for {} s", self.name, patience.as_secs_f64()))
            }
        }
    }

    /// The spool from `from_bytes` on, for somebody who reads it while it grows.
    fn tail(&self, from_bytes: u64, stream_bytes: u64) -> io::Result<io::Take<File>> {
        let mut file = self.spool.reopen()?;
        file.seek(SeekFrom::Start(from_bytes))?;
        Ok(file.take(stream_bytes.saturating_sub(from_bytes)))
    }

    /// Lets the program end: without its input it does, and has said everything. One that does not is stopped.
    ///
    /// # Errors
    /// Why nothing is known of its end.
    fn end(&mut self, patience: Duration) -> std::result::Result<ExitStatus, String> {
        self.feeder = None;
        let Some(child) = &mut self.child else { return Err("it has been stopped".to_owned()) };
        match wait(child, patience) {
            Ok(Some(ended)) => Ok(ended),
            Ok(None) => {
                self.stop();
                let seconds = patience.as_secs_f64();
                Err(format!("{} did not end within {seconds} s of its last frame", self.name))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Stops the program wherever it is. One that has ended is only reaped.
    fn stop(&mut self) {
        self.feeder = None;
        let Some(mut child) = self.child.take() else { return };
        drop(child.kill());
        if matches!(wait(&mut child, KILLED_MAX), Ok(None)) {
            // It waits for a disk that does not answer. Nobody but the thread that reaps it is to wait with it.
            let reaper = thread::Builder::new().name("encoder-reaper".to_owned());
            drop(reaper.spawn(move || child.wait()));
        }
    }

    /// What it said before it ended.
    fn last_words(&mut self) -> String {
        let line = last_line(&mut self.said).ok().flatten();
        line.unwrap_or_else(|| "it says nothing".to_owned())
    }
}

/// The last line with something in it, as far as it lies in the last few KiB.
fn last_line(said: &mut File) -> io::Result<Option<String>> {
    let said_bytes = said.seek(SeekFrom::End(0))?;
    said.seek(SeekFrom::Start(said_bytes.saturating_sub(WORDS_BYTES_MAX)))?;
    let mut tail = Vec::new();
    said.take(WORDS_BYTES_MAX).read_to_end(&mut tail)?;
    let tail = String::from_utf8_lossy(&tail);
    Ok(tail.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned))
}

fn failed(frame: usize, reason: &str) -> VideoError {
    VideoError::Encoder { frame, reason: format!("the external encoder: {reason}") }
}

impl FrameSink for Piped {
    fn waits_for_others(&self) -> bool {
        true
    }

    fn push(&mut self, rgb: &[f32]) -> Result<()> {
        let (got, expected) = (rgb.len(), self.settings.frame_len());
        if got != expected {
            return Err(VideoError::Frame { frame: self.frames, got, expected });
        }
        for (byte, value) in self.rgb.iter_mut().zip(rgb) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in 0..=255")]
            {
                *byte = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
            }
        }
        self.give()
    }

    fn save(&mut self, from_bytes: u64) -> Result<Option<SinkState>> {
        let stream_bytes = (self.frames * self.settings.frame_len()) as u64;
        let tail = self.tail(from_bytes, stream_bytes);
        let tail = tail.map_err(|source| VideoError::Io { path: self.path.clone(), source })?;
        let facts = self.frames.to_string().into_bytes();
        Ok(Some(SinkState { facts, stream_bytes, tail: Box::new(tail) }))
    }

    fn restore(&mut self, facts: &[u8], stream: &mut dyn Read) -> Result<()> {
        const FOREIGN: VideoError = VideoError::State("what was saved was made by another encoder");
        let frames = std::str::from_utf8(facts).ok().and_then(|frames| frames.parse::<usize>().ok());
        for _ in 0..frames.ok_or(FOREIGN)? {
            let read = stream.read_exact(&mut self.rgb);
            read.map_err(|source| VideoError::Io { path: self.path.clone(), source })?;
            self.give()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<VideoSummary> {
        if let Some(reason) = &self.lost {
            return Err(failed(self.frames, reason));
        }
        if self.frames == 0 {
            return Err(VideoError::Empty);
        }
        let patience = self.patience.ends;
        let ended = self.end(patience).map_err(|reason| failed(self.frames, &reason))?;
        if !ended.success() {
            let said = self.last_words();
            return Err(failed(self.frames, &format!("{said} ({ended})")));
        }
        let file = std::fs::metadata(&self.path).map_err(|error| failed(self.frames, &error.to_string()))?;
        let duration_s = self.frames as f64 / f64::from(self.settings.fps);
        Ok(VideoSummary { frames: self.frames, duration_s, bytes: file.len() })
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ffmpeg(arguments: &[&str]) -> Option<Encoder> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let encoder = Encoder::Ffmpeg { program: "ffmpeg".into(), arguments };
        if let Err(sentence) = encoder.check() {
            eprintln!("there is no ffmpeg on this machine, so it is not tried: {sentence}");
            return None;
        }
        Some(encoder)
    }

    #[test]
    fn frames_go_through_another_program_into_a_file() {
        let Some(encoder) = ffmpeg(&["-c:v", "mpeg4", "-movflags", "+faststart"]) else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("video.mp4");
        let settings = VideoSettings::new(64, 32, 16);
        let (mut video, grows) = encoder.open(&path, settings).unwrap();
        assert!(video.push(&[0.0; 3]).unwrap_err().to_string().contains("expected 6144"));
        for frame in 0..9 {
            video.push(&vec![frame as f32 / 8.0; settings.frame_len()]).unwrap();
        }
        let summary = video.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((summary.frames, summary.bytes, grows), (9, bytes.len() as u64, false));
        assert_eq!(&bytes[4..8], b"ftyp");
    }

    #[test]
    fn a_video_goes_on_in_another_process_of_the_program_with_the_same_bytes() {
        let Some(encoder) = ffmpeg(&["-c:v", "mpeg4", "-threads", "1", "-bitexact"]) else { return };
        let dir = tempfile::tempdir().unwrap();
        let settings = VideoSettings::new(64, 32, 16);
        let frame = |at: usize| vec![at as f32 / 12.0; settings.frame_len()];
        let path = dir.path().join("video.mp4");
        let (mut video, _) = encoder.open(&path, settings).unwrap();
        (0..12).for_each(|at| video.push(&frame(at)).unwrap());
        video.finish().unwrap();
        let expected = std::fs::read(&path).unwrap();
        let (mut saved, mut facts) = (Vec::new(), b"0".to_vec());
        // It ends after 5 frames, and after 4 more.
        for range in [0..5, 5..9, 9..12] {
            let (mut video, _) = encoder.open(&path, settings).unwrap();
            video.restore(&facts, &mut saved.as_slice()).unwrap();
            range.clone().for_each(|at| video.push(&frame(at)).unwrap());
            let mut state = video.save(saved.len() as u64).unwrap().unwrap();
            state.tail.read_to_end(&mut saved).unwrap();
            assert_eq!(state.stream_bytes, saved.len() as u64);
            facts = state.facts;
            if range.end == 12 {
                video.finish().unwrap();
            }
        }
        assert!(std::fs::read(&path).unwrap() == expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the frames are gone with the video");
    }

    #[test]
    fn a_program_that_fails_fails_the_video_with_its_words() {
        let Some(encoder) = ffmpeg(&["-c:v", "no_such_codec"]) else { return };
        let dir = tempfile::tempdir().unwrap();
        let settings = VideoSettings::new(64, 32, 16);
        let (mut video, _) = encoder.open(&dir.path().join("video.mp4"), settings).unwrap();
        let frame = vec![0.5; settings.frame_len()];
        // It may take some frames before it is seen to have ended.
        let refused = (0..1000).find_map(|_| video.push(&frame).err());
        let error =
            refused.map_or_else(|| video.finish().unwrap_err().to_string(), |error| error.to_string());
        assert!(error.contains("external encoder") && error.contains("no_such_codec"), "{error}");
    }

    /// A program that begins to read, says far more than a pipe holds, reads on, and says as much again. Its video is what it was given.
    const TALKATIVE: &str = r#"#!/bin/sh
status=0
for video; do if [ "$video" = fails ]; then status=3; fi; done
talk() { head -c 250000 /dev/zero | tr '\0' x >&2; echo >&2; }
dd bs=6144 count=1 2>/dev/null >"$video"
talk
cat >>"$video"
talk
echo 'that was all' >&2
exit $status
"#;

    /// Writes a program that can be run. A shell writes it: a file that this process has open for writing could be refused as busy.
    fn program(path: &Path, text: &str) {
        let write = r#"printf '%s' "$1" >"$2" && chmod +x "$2""#;
        let status = Command::new("sh").args(["-c", write, "sh", text]).arg(path).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn a_program_that_talks_a_lot_is_not_stopped_by_it_and_its_last_line_is_told() {
        let (dir, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let talkative = programs.path().join("talkative");
        program(&talkative, TALKATIVE);
        let path = dir.path().join("video.mp4");
        let settings = VideoSettings::new(64, 32, 16);
        for arguments in [vec![], vec!["fails".to_owned()]] {
            let fails = !arguments.is_empty();
            let encoder = Encoder::Ffmpeg { program: talkative.clone(), arguments };
            let (mut video, _) = encoder.open(&path, settings).unwrap();
            // More than a pipe holds, too.
            for _ in 0..20 {
                video.push(&vec![0.5; settings.frame_len()]).unwrap();
            }
            let finished = video.finish();
            if fails {
                let error = finished.unwrap_err().to_string();
                assert!(error.ends_with("the external encoder: that was all (exit status: 3)"), "{error}");
            } else {
                assert_eq!(finished.unwrap().bytes, 20 * 6144);
            }
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "frames and words are gone");
        }
    }

    #[test]
    fn a_program_that_takes_nothing_fails_its_video_alone() {
        let (dir, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (deaf, talkative) = (programs.path().join("deaf"), programs.path().join("talkative"));
        program(&deaf, "#!/bin/sh\nexec sleep 1000\n");
        program(&talkative, TALKATIVE);
        let settings = VideoSettings::new(64, 32, 16);
        let soon = Patience { takes_nothing: Duration::from_millis(500), ..PATIENCE };
        let mut video = Piped::start(&deaf, &[], &dir.path().join("deaf.mp4"), settings, soon).unwrap();
        let mut other = Piped::start(&talkative, &[], &dir.path().join("0.mp4"), settings, PATIENCE).unwrap();
        let process = PathBuf::from(format!("/proc/{}", video.child.as_ref().unwrap().id()));
        let frame = vec![0.5; settings.frame_len()];
        // The pipe holds some frames.
        let refused = (0..100).find_map(|_| {
            other.push(&frame).unwrap();
            video.push(&frame).err()
        });
        let error = refused.unwrap().to_string();
        assert!(error.ends_with("the external encoder: deaf took nothing for 0.5 s"), "{error}");
        assert!(!process.exists(), "it is stopped and reaped");
        assert_eq!(video.push(&frame).unwrap_err().to_string(), error);
        assert_eq!(Box::new(video).finish().unwrap_err().to_string(), error);
        other.push(&frame).unwrap();
        let summary = Box::new(other).finish().unwrap();
        assert_eq!(summary.bytes, 6144 * summary.frames as u64);
    }

    #[test]
    fn a_program_that_does_not_end_fails_its_video() {
        let (dir, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let endless = programs.path().join("endless");
        program(&endless, "#!/bin/sh\ncat >/dev/null\nexec sleep 1000\n");
        let settings = VideoSettings::new(64, 32, 16);
        let soon = Patience { ends: Duration::from_millis(500), ..PATIENCE };
        let mut video = Piped::start(&endless, &[], &dir.path().join("video.mp4"), settings, soon).unwrap();
        let process = PathBuf::from(format!("/proc/{}", video.child.as_ref().unwrap().id()));
        for _ in 0..20 {
            video.push(&vec![0.5; settings.frame_len()]).unwrap();
        }
        let error = Box::new(video).finish().unwrap_err().to_string();
        assert!(error.ends_with("endless did not end within 0.5 s of its last frame"), "{error}");
        assert!(!process.exists(), "it is stopped and reaped");
    }

    #[test]
    fn of_what_was_said_the_last_line_is_read_and_not_much_of_it() {
        let mut said = tempfile::tempfile().unwrap();
        assert_eq!(last_line(&mut said).unwrap(), None);
        said.write_all(b"first\nlast\n \n").unwrap();
        assert_eq!(last_line(&mut said).unwrap().as_deref(), Some("last"));
        said.write_all(&vec![b'x'; 100_000]).unwrap();
        assert_eq!(last_line(&mut said).unwrap().map(|line| line.len()), Some(4096));
    }

    #[test]
    fn a_program_that_is_not_there_is_said_when_the_service_starts() {
        let encoder = Encoder::Ffmpeg { program: "no-such-program".into(), arguments: Vec::new() };
        assert!(encoder.check().unwrap_err().contains("no-such-program"));
        assert_eq!(Encoder::default().check(), Ok(()));
    }
}

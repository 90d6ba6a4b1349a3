// Plays a video while it is being made: bytes of a fragmented MP4 go into a MediaSource as they come. `open` gives the answer to a
// request for the content (with a key, if one is needed, which no `src` of a video could send).

const FORGET_AFTER_S = 60;

// "avc1." and three bytes of the box avcC: profile, compatibility, level (RFC 6381, section 3.3).
function codecs(bytes) {
  const at = [0x61, 0x76, 0x63, 0x43]; // avcC
  for (let i = 0; i + 8 <= bytes.length; i += 1) {
    if (at.every((byte, k) => bytes[i + k] === byte)) {
      return "avc1." + [...bytes.slice(i + 5, i + 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    }
  }
  return null;
}

function joined(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

const happened = (target, name) => new Promise((resolve, reject) => {
  target.addEventListener(name, resolve, { once: true });
  target.addEventListener("error", () => reject(new Error("the video cannot be played here")), { once: true });
});

export const canPlayGrowing = () => "MediaSource" in window;

// Resolves when the whole video has come; rejects when it breaks off. `signal` ends it early.
export async function playGrowing(video, open, signal) {
  const response = await open(signal);
  const reader = response.body.getReader();
  const source = new MediaSource();
  const url = URL.createObjectURL(source);
  video.src = url;
  try {
    await happened(source, "sourceopen");
    let head = new Uint8Array(0);
    let buffer = null;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      let bytes = value;
      if (!buffer) {
        head = joined(head, value);
        const named = codecs(head);
        if (!named) continue;
        buffer = source.addSourceBuffer(`video/mp4; codecs="${named}"`);
        bytes = head;
      }
      buffer.appendBuffer(bytes);
      await happened(buffer, "updateend");
      const old = video.currentTime - FORGET_AFTER_S;
      if (old > FORGET_AFTER_S) {
        buffer.remove(0, old);
        await happened(buffer, "updateend");
      }
    }
    if (source.readyState === "open") source.endOfStream();
  } finally {
    URL.revokeObjectURL(url);
    reader.cancel().catch(() => {});
  }
}

"""Files for the fuzz targets to begin with, into fuzz/corpus: python3 fuzz/seeds.py [the program evanesce, for videos]."""

import json
import pathlib
import struct
import subprocess
import sys

FUZZ = pathlib.Path(__file__).parent
CORPUS = FUZZ / "corpus"
GOLDEN = FUZZ.parent / "crates/engine/tests/goldens/pipeline/checkpoint"
FULL_BOX = bytes(4)


def write(target, name, data):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tensors(**shapes):
    """A safetensors file of zeros in f32."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin = end
        count = 1
        for axis in shape:
            count *= axis
        end += 4 * count
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def box(kind, body):
    return struct.pack(">I", 8 + len(body)) + kind + body


def hostile_videos():
    """Indices whose reading would be out of proportion to their length if all of their boxes were read."""
    ftyp = box(b"ftyp", b"isom" + bytes(4) + b"isom")
    depth = 2000
    nested = b"".join(struct.pack(">I", 8 * (depth - at)) + b"moov" for at in range(depth))
    yield "nested", ftyp + nested
    # So many groups of nothing.
    yield "groups", ftyp + box(b"moov", box(b"sgpd", FULL_BOX + b"roll" + struct.pack(">I", (1 << 32) - 1)))
    # An item of so many extents of nothing.
    item = struct.pack(">HHHH", 1, 0, 0, (1 << 16) - 1)
    yield "extents", ftyp + box(b"moov", box(b"iloc", b"\x01\0\0\0\0\0" + struct.pack(">H", 1) + item))


def videos(program):
    for frames in (1, 5):
        for extra in ([], ["--quality", "51"]):
            path = CORPUS / "video_file" / f"video-{frames}-{len(extra)}"
            size = ["--size", "32x32", "--frames", str(frames), "--steps", "1", "--seed", "1"]
            command = [program, "generate", "a red ball", "--model", GOLDEN, *size, *extra, "--output", path]
            subprocess.run(command, check=True)


def main():
    write("tensor_file", "noise", tensors(noise=[16, 3, 4, 4]))
    write("tensor_file", "noise-of-another-shape", tensors(noise=[16, 2, 4, 4]))
    write("tensor_file", "frames", tensors(frames=[1, 32, 32, 3]))
    write("tensor_file", "several", tensors(frames=[1, 1, 1, 3], noise=[1, 1, 1, 1]))
    write("video_file", "frames", tensors(frames=[2, 11, 11, 3]))
    write("video_file", "no-frames", tensors(frames=[0, 11, 11, 3]))
    for name, data in hostile_videos():
        write("video_file", name, data)
    pair = {"keys": "int8", "values": "int2"}
    codecs = {
        "least": {"base": "int8"},
        "most": {
            "base": "k8v4",
            "sink": "bf16",
            "newest": pair,
            "layers": {"high_noise": ["int4", pair], "low_noise": ["f32", "k4v2"]},
            "measured": {"high_noise": []},
        },
        "none": {"base": pair, "sink": None, "newest": None, "layers": {}},
    }
    for name, value in codecs.items():
        write("kv_codec_file", name, json.dumps(value).encode())
    # An input of this target is a list of changes; none is one to begin with.
    write("snapshot", "unchanged", b"")
    if len(sys.argv) > 1:
        videos(sys.argv[1])


if __name__ == "__main__":
    main()

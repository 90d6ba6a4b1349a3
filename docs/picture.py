"""Cuts rows out of a contact sheet of models/, for the picture in README.md; Python alone, nothing else.

    python docs/picture.py models/shapes/contact-sheet.png docs/shapes.png 20 8 9 21

Rows are counted from 0, as the lines of contact-sheet.txt are; each is as high as wide: a frame of 64 pixels and its border.
"""

import struct
import sys
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ROW = 66


def chunks(data):
    """Names and contents of a PNG file's chunks (ISO/IEC 15948, 5.3)."""
    at = len(SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += length + 12


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def paeth(left, above, corner):
    guess = left + above - corner
    return min((left, above, corner), key=lambda value: abs(guess - value))


def lines(data, width):
    """The lines of an image of one byte a pixel, without the filters that they were stored with (ISO/IEC 15948, 9.2)."""
    above = bytes(width)
    for at in range(0, len(data), width + 1):
        kind, line = data[at], bytearray(data[at + 1 : at + 1 + width])
        for x in range(width if kind else 0):
            left, corner = (line[x - 1], above[x - 1]) if x else (0, 0)
            guess = (0, left, above[x], (left + above[x]) // 2, paeth(left, above[x], corner))[kind]
            line[x] = (line[x] + guess) & 255
        yield bytes(line)
        above = line


def main():
    source, target, *rows = sys.argv[1:]
    with open(source, "rb") as file:
        data = file.read()
    parts = list(chunks(data))
    header = dict(parts)[b"IHDR"]
    width, height, *form = struct.unpack(">IIBBBBB", header)
    if data[: len(SIGNATURE)] != SIGNATURE or form != [8, 3, 0, 0, 0]:
        sys.exit(f"{source} is no PNG file with a palette, 8 bits a pixel and no interlace, as contact sheets are")
    there = list(lines(zlib.decompress(b"".join(content for name, content in parts if name == b"IDAT")), width))
    cut = [line for row in map(int, rows) for line in there[row * ROW : (row + 1) * ROW]]
    if not cut or len(cut) != ROW * len(rows):
        sys.exit(f"name rows from 0 to {height // ROW - 1}")
    stored = zlib.compress(b"".join(b"\0" + line for line in cut), 9)
    with open(target, "wb") as file:
        file.write(SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(cut), *form)))
        file.write(b"".join(chunk(name, content) for name, content in parts if name in (b"PLTE", b"tRNS")))
        file.write(chunk(b"IDAT", stored) + chunk(b"IEND", b""))


if __name__ == "__main__":
    main()

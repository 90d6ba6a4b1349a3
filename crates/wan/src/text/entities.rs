//! HTML character references, as Python's `html.unescape` reads them (which follows HTML 5 parsing, missing semicolons
//! and wrong numbers included).

use std::borrow::Cow;

/// Longest name that a reference may have, in characters.
const NAME_CHARS_MAX: usize = 32;

/// References that HTML 5 accepts without a semicolon, for the sake of old pages.
const BARE: &str = "AElig AMP Aacute Acirc Agrave Aring Atilde Auml COPY Ccedil ETH Eacute Ecirc Egrave Euml GT Iacute \
    Icirc Igrave Iuml LT Ntilde Oacute Ocirc Ograve Oslash Otilde Ouml QUOT REG THORN Uacute Ucirc Ugrave Uuml Yacute \
    aacute acirc acute aelig agrave amp aring atilde auml brvbar ccedil cedil cent copy curren deg divide eacute ecirc \
    egrave eth euml frac12 frac14 frac34 gt iacute icirc iexcl igrave iquest iuml laquo lt macr micro middot nbsp not \
    ntilde oacute ocirc ograve ordf ordm oslash otilde ouml para plusmn pound quot raquo reg sect shy sup1 sup2 sup3 \
    szlig thorn times uacute ucirc ugrave uml uuml yacute yen yuml";

/// What the numbers 0x80 to 0x9f stand for: the letters that Windows-1252 has there.
const C1: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}',
    '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Replaces every character reference once; what is none stays as it is.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let read = if after.starts_with('#') { number(after, &mut out) } else { name(after, &mut out) };
        if read == 0 {
            out.push('&');
        }
        rest = &after[read..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Reads `#233;` or `#xe9;`, semicolon or not; says how many bytes it took, 0 when it is no number.
fn number(text: &str, out: &mut String) -> usize {
    let (radix, start) = if text[1..].starts_with(['x', 'X']) { (16, 2) } else { (10, 1) };
    let digits = text[start..].bytes().take_while(|byte| char::from(*byte).is_digit(radix)).count();
    if digits == 0 {
        return 0;
    }
    let end = start + digits;
    // A number too large to read stands for the same as one past the last code point.
    let value = u32::from_str_radix(&text[start..end], radix).unwrap_or(u32::MAX);
    out.extend(character(value));
    end + usize::from(text[end..].starts_with(';'))
}

/// The character for a number; none for those that may not stand in a document.
fn character(value: u32) -> Option<char> {
    match value {
        0 => Some(char::REPLACEMENT_CHARACTER),
        0x80..=0x9f => C1.get(value as usize - 0x80).copied(),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        _ if value <= 0x0010_ffff && value & 0xfffe == 0xfffe => None,
        _ => Some(char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER)),
    }
}

/// Reads `amp;`, or the longest old name that the text starts with; says how many bytes it took.
fn name(text: &str, out: &mut String) -> usize {
    let stops = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let end = text.char_indices().take(NAME_CHARS_MAX).find(|&(_, c)| stops(c)).map(|(at, _)| at);
    let end = end.unwrap_or_else(|| text.char_indices().nth(NAME_CHARS_MAX).map_or(text.len(), |(at, _)| at));
    if text[end..].starts_with(';')
        && let Some(value) = named(&text[..end])
    {
        out.push_str(value);
        return end + 1;
    }
    let bare = BARE.split(' ').filter(|bare| text[..end].starts_with(bare)).max_by_key(|bare| bare.len());
    let Some((bare, value)) = bare.and_then(|bare| Some((bare, named(bare)?))) else { return 0 };
    out.push_str(value);
    bare.len()
}

fn named(name: &str) -> Option<&'static str> {
    let entities = &html_escape::NAMED_ENTITIES;
    let at = entities.binary_search_by(|(known, _)| (*known).cmp(name.as_bytes())).ok()?;
    Some(entities[at].1)
}

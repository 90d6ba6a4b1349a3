//! A head's numbers, cut where a group of the row's codec ends.

use crate::codec::GROUP;

/// Numbers of one head that share a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Its number in the head.
    pub(super) at: usize,
    /// The group of the row.
    pub(super) group: usize,
    /// First number, counted in the row.
    pub(super) start: usize,
    /// First number, counted in the head.
    pub(super) offset: usize,
    /// How many numbers.
    pub(super) len: usize,
    /// The first of its words among the head's, where every span begins a word of four codes of its own.
    pub(super) word: usize,
}

impl Span {
    /// Words of four codes; what the last one holds beyond the span counts as zero.
    pub(super) fn words(&self) -> usize {
        self.len.div_ceil(4)
    }
}

/// The spans of the head whose numbers begin at `start` of a row.
pub(super) fn spans(start: usize, head_dim: usize) -> impl Iterator<Item = Span> {
    let (mut offset, mut word, mut at) = (0, 0, 0);
    std::iter::from_fn(move || {
        let from = start + offset;
        let len = (GROUP - from % GROUP).min(head_dim - offset);
        let span = Span { at, group: from / GROUP, start: from, offset, len, word };
        (offset, word, at) = (offset + len, word + span.words(), at + 1);
        (len > 0).then_some(span)
    })
}

/// Spans of a head at most, wherever it begins.
pub(super) fn spans_max(head_dim: usize) -> usize {
    head_dim.div_ceil(GROUP) + 1
}

/// Words of a head at most.
pub(super) fn words_max(head_dim: usize) -> usize {
    head_dim.div_ceil(4) + spans_max(head_dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_a_head_and_never_leave_their_group() {
        for head_dim in 1..300 {
            for head in 0..5 {
                let start = head * head_dim;
                let all: Vec<_> = spans(start, head_dim).collect();
                assert!(all.len() <= spans_max(head_dim), "{head_dim} at {start}");
                assert_eq!(all.iter().map(|span| span.len).sum::<usize>(), head_dim);
                let mut next = (0, 0);
                for (at, span) in all.iter().enumerate() {
                    assert_eq!((span.at, span.offset, span.word), (at, next.0, next.1));
                    assert_eq!(span.start, start + span.offset);
                    let groups = [span.start, span.start + span.len - 1].map(|number| number / GROUP);
                    assert_eq!(groups, [span.group; 2]);
                    next = (span.offset + span.len, span.word + span.words());
                }
                assert!(next.1 <= words_max(head_dim));
            }
        }
    }
}

//! The evanesce command.

fn main() {}

//! Which layers bear which codec: measured on a short run, then chosen under a budget.
//!
//! While a job runs with exact pages, each attention to them is done again with the keys or the values of all pages in each
//! codec, and the difference of its output is added up for every (expert, layer, keys or values, codec). Errors of different
//! pages are taken to be independent, so their squares add. Then every side of every layer begins with its cheapest codec, and the
//! one whose step up buys the most error for its bytes takes it, again and again, until the budget is met. Errors of outputs
//! are what counts: those of the numbers themselves say little about the video.

mod choice;
mod measurement;

pub use choice::{Assignment, Budget};
pub use measurement::{Measurement, Side};

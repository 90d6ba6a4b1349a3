//! Residual addition, without a gate and with one.

use crate::isa::{Isa, by_isa};
use crate::tasks;

/// `residual += update`, elementwise.
///
/// # Panics
/// When the lengths differ.
pub fn add(residual: &mut [f32], update: &[f32]) {
    assert_eq!(residual.len(), update.len(), "add: residual and update must be of one length");
    let isa = Isa::current();
    tasks::rows(residual, 1, |at, chunk| plain(isa, chunk, &update[at..]));
}

/// Per row of `gate.len()` numbers: `residual += update * gate`, fused.
///
/// # Panics
/// When `residual` and `update` differ in length or are not whole rows.
pub fn gate_add(residual: &mut [f32], update: &[f32], gate: &[f32]) {
    assert_eq!(residual.len(), update.len(), "gate_add: residual and update must be of one length");
    assert!(
        residual.is_empty() || (!gate.is_empty() && residual.len().is_multiple_of(gate.len())),
        "gate_add: residual must be whole rows of gate's length"
    );
    let isa = Isa::current();
    tasks::rows(residual, gate.len(), |at, chunk| gated(isa, chunk, &update[at..], gate));
}

by_isa! {
    fn plain(residual: &mut [f32], update: &[f32]) = plain_inner
}

#[inline(always)]
fn plain_inner(residual: &mut [f32], update: &[f32]) {
    residual.iter_mut().zip(update).for_each(|(r, u)| *r += u);
}

by_isa! {
    fn gated(residual: &mut [f32], update: &[f32], gate: &[f32]) = gated_inner
}

#[inline(always)]
fn gated_inner(residual: &mut [f32], update: &[f32], gate: &[f32]) {
    for (row, update) in residual.chunks_exact_mut(gate.len()).zip(update.chunks_exact(gate.len())) {
        for ((r, u), g) in row.iter_mut().zip(update).zip(gate) {
            *r = u.mul_add(*g, *r);
        }
    }
}

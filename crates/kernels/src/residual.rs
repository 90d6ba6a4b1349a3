//! Gated residual addition.

use crate::isa::{Isa, by_isa};
use crate::tasks;

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
    tasks::rows(residual, gate.len(), |at, chunk| add(isa, chunk, &update[at..], gate));
}

by_isa! {
    fn add(residual: &mut [f32], update: &[f32], gate: &[f32]) = add_inner
}

#[inline(always)]
fn add_inner(residual: &mut [f32], update: &[f32], gate: &[f32]) {
    for (row, update) in residual.chunks_exact_mut(gate.len()).zip(update.chunks_exact(gate.len())) {
        for ((r, u), g) in row.iter_mut().zip(update).zip(gate) {
            *r = u.mul_add(*g, *r);
        }
    }
}

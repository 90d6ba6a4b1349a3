//! Gated residual addition.

/// Per row of `gate.len()` numbers: `residual += update * gate`.
///
/// # Panics
/// When `residual` and `update` differ in length or are not whole rows.
pub fn gate_add(residual: &mut [f32], update: &[f32], gate: &[f32]) {
    assert_eq!(residual.len(), update.len(), "gate_add: residual and update must be of one length");
    assert!(
        residual.is_empty() || (!gate.is_empty() && residual.len().is_multiple_of(gate.len())),
        "gate_add: residual must be whole rows of gate's length"
    );
    for (row, add) in residual.chunks_mut(gate.len().max(1)).zip(update.chunks(gate.len().max(1))) {
        for ((r, u), g) in row.iter_mut().zip(add).zip(gate) {
            *r = u.mul_add(*g, *r);
        }
    }
}

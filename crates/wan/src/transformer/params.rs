//! Layers read by name out of a leased group.

use evanesce_kernels::{Activation, Epilogue, LinearDims, Values};

use crate::error::{Result, WanError};
use crate::weights::{Matrix, WeightGroup};

/// Numbers of a vector or table, which must be `len` of them.
pub(crate) fn table<'a>(group: &'a dyn WeightGroup, name: &str, len: usize) -> Result<Values<'a>> {
    let param = group.param(name)?;
    if param.values.len() == len {
        Ok(param.values)
    } else {
        Err(WanError::mismatch(name, format!("{:?}", param.shape), format!("{len} numbers")))
    }
}

/// `out = x · weightᵀ + bias` by the layer called `name`; `x` is `[rows, inputs]`, `out` `[rows, outputs]`. Kernels of
/// convolutions that cover disjoint patches count as `[outputs, inputs]` matrices.
pub(crate) fn linear(group: &dyn WeightGroup, name: &str, x: &[f32], out: &mut [f32]) -> Result<()> {
    linear_then(group, name, x, Epilogue::Activate(Activation::None), out)
}

/// As [`linear`], with `epilogue` applied to what the layer gives.
pub(crate) fn linear_then(
    group: &dyn WeightGroup,
    name: &str,
    x: &[f32],
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) -> Result<()> {
    let Matrix { weight, outputs, inputs } = group.matrix(&format!("{name}.weight"))?;
    let rows = out.len().checked_div(outputs).unwrap_or(0);
    if rows * outputs != out.len() || rows * inputs != x.len() {
        let got = format!("[{outputs}, {inputs}] for {} inputs and {} outputs", x.len(), out.len());
        return Err(WanError::mismatch(format!("{name}.weight"), got, "a matrix that fits both"));
    }
    let bias = table(group, &format!("{name}.bias"), outputs)?;
    let dims = LinearDims { rows, inputs, outputs };
    evanesce_kernels::linear_then(x, weight, Some(bias), dims, epilogue, out);
    Ok(())
}

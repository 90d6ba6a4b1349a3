//! Sizes of a linear layer as people write them.

use std::str::FromStr;

/// Products of rows, inputs and outputs above this are a mistake.
const MOST_NUMBERS: usize = 1 << 34;

/// Rows, inputs and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinearShape {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl FromStr for LinearShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write rows, inputs and outputs as MxKxN, such as 1560x5120x5120".to_owned();
        let sizes: Vec<usize> = text.split('x').map(|part| part.parse().unwrap_or(0)).collect();
        let &[rows, inputs, outputs] = sizes.as_slice() else { return Err(wrong()) };
        let numbers = |a: usize, b: usize| a.checked_mul(b).filter(|n| (1..=MOST_NUMBERS).contains(n));
        let all = [numbers(rows, inputs), numbers(inputs, outputs), numbers(rows, outputs)];
        if sizes.contains(&0) {
            return Err(wrong());
        }
        if all.contains(&None) {
            return Err(format!("is too large: no two of the sizes may have a product above {MOST_NUMBERS}"));
        }
        Ok(Self { rows, inputs, outputs })
    }
}

#[cfg(test)]
mod tests {
    use super::LinearShape;

    #[test]
    fn a_shape_is_three_numbers_of_some_size() {
        let shape = LinearShape { rows: 1, inputs: 20, outputs: 300 };
        assert_eq!("1x20x300".parse(), Ok(shape));
        for wrong in ["1x2", "1x2x3x4", "0x1x1", "ax1x1", "", "99999999999x99999999999x1"] {
            assert!(wrong.parse::<LinearShape>().is_err(), "{wrong}");
        }
        let refusal = "99999999x99999999x1".parse::<LinearShape>().unwrap_err();
        assert!(refusal.contains("too large"), "{refusal}");
    }
}

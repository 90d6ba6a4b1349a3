//! Initial noise against `torch.randn`, as stored by `xtask/goldens/noise.py`.

use evanesce_wan::noise::{Generator, initial_noise};
use safetensors::SafeTensors;

static GOLDENS: &[u8] = include_bytes!("goldens/noise/randn.safetensors");

fn floats(goldens: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = goldens.tensor(name).expect("stored").data();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_seed_gives_the_noise_that_torch_gives_at_every_length() {
    let goldens = SafeTensors::deserialize(GOLDENS).unwrap();
    let mut checked = 0;
    for name in goldens.names() {
        let Some((seed, length)) = name.split_once('/').filter(|(seed, _)| *seed != "large") else {
            continue;
        };
        let noise = initial_noise(seed.parse().unwrap(), length.parse().unwrap());
        assert_eq!(bits(&noise), bits(&floats(&goldens, name)), "seed {seed}, length {length}");
        checked += 1;
    }
    assert_eq!(checked, 63);
}

#[test]
fn a_whole_clip_of_noise_equals_torch_bit_for_bit() {
    let goldens = SafeTensors::deserialize(GOLDENS).unwrap();
    for length in [16 * 21 * 8 * 8, 16 * 21 * 60 * 104 - 5] {
        let noise = initial_noise(7, length);
        assert_eq!(bits(&noise[..64]), bits(&floats(&goldens, &format!("large/{length}/first"))));
        assert_eq!(bits(&noise[length - 64..]), bits(&floats(&goldens, &format!("large/{length}/last"))));
        let digest = (1u64..)
            .zip(&noise)
            .fold(0u64, |sum, (weight, x)| sum.wrapping_add(weight.wrapping_mul(u64::from(x.to_bits()))))
            & (u64::MAX >> 1);
        let expected = goldens.tensor(&format!("large/{length}/digest")).unwrap().data();
        assert_eq!(digest.to_le_bytes(), expected);
    }
}

#[test]
fn successive_calls_share_one_stream_and_keep_the_spare_number() {
    let goldens = SafeTensors::deserialize(GOLDENS).unwrap();
    let mut generator = Generator::new(11);
    let mut noise = Vec::new();
    for length in [3, 20, 4, 16] {
        let mut part = vec![0.0; length];
        generator.normal(&mut part);
        noise.extend(part);
    }
    assert_eq!(bits(&noise), bits(&floats(&goldens, "calls")));
}

//! Attention over encoded pages takes one tile of memory for each worker, however many pages there are: no window is ever
//! decoded.

use evanesce_kernels::{AttentionDims, Codec, CountingAllocator, EncodedRows, KvSegment, attend, encode};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new(0);

#[test]
fn the_peak_is_a_tile_for_each_worker_whatever_the_pages() {
    const WORKERS: usize = 2;
    let (heads, head_dim, page_keys) = (4, 128, 390);
    let width = heads * head_dim;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(WORKERS).build().expect("threads can be started");
    let dims = AttentionDims { queries: 780, heads, head_dim, scale: 0.1 };
    let numbers: Vec<f32> = (0..780 * width).map(|i| (i % 251) as f32 * 0.01 - 1.2).collect();
    let mut out = vec![0.0; numbers.len()];
    for codec in Codec::ALL {
        let mut bytes = vec![0; page_keys * codec.row_bytes(width)];
        encode(codec, &numbers[..page_keys * width], width, &mut bytes);
        let rows = EncodedRows::new(codec, &bytes, width).expect("whole rows").into();
        let page = KvSegment { keys: rows, values: rows, logit_bias: 0.0, turn: None };
        let [few, many] = [2, 24].map(|pages| {
            let segments = vec![page; pages];
            let run = |out: &mut [f32]| pool.install(|| attend(&numbers, &segments, dims, out));
            // What the pool itself sets up once is none of a call's.
            run(&mut out);
            ALLOCATOR.peak_bytes_of(|| run(&mut out))
        });
        // 192 queries, their codes and sums, a tile of 96 keys and values, and logits.
        let tile = 4 * (192 * 128 * 3 + 2 * 96 * 132 + 3 * 96 * 16 * 2 + 64 * 192);
        assert!(many <= WORKERS * tile, "{codec}: {many} bytes, a tile is {tile}");
        assert!(many <= few + 4096, "{codec}: {few} bytes for two pages, {many} for 24");
        // The window in numbers would be far more.
        assert!(many < 2 * 24 * page_keys * width * 4 / 8, "{codec}: {many}");
    }
}

//! A file that a job is given as its noise, or to go on from: the job is admitted, or refused in words, and leaves nothing behind. Of
//! noise every number is read here; of frames to go on from only where they are, since encoding them takes the whole VAE.
#![no_main]

mod scene;
mod scratch;

use evanesce_engine::{CancelToken, JobRun, Model, Request};

thread_local! {
    static MODEL: &'static Model = open();
}

/// Opens the model, and checks that files are admitted that are as they should be: else the rest is for nothing.
fn open() -> &'static Model {
    let model = scene::model();
    assert_eq!(admitted(model, &zeros("noise", [16, 3, 4, 4])), [true, false]);
    assert_eq!(admitted(model, &zeros("frames", [5, 32, 32, 3])), [false, true]);
    model
}

/// Whether a job is admitted that has this file as its noise, and one that goes on from it.
fn admitted(model: &Model, file: &[u8]) -> [bool; 2] {
    let path = scratch::path("input");
    std::fs::write(&path, file).expect("temporary files can be written");
    let noise = Request { noise_in: Some(path.clone()), ..scene::request() };
    let start = Request { start_from: Some(path), ..scene::request() };
    [noise, start].map(|request| {
        let job = JobRun::admit(model, request, scene::outputs(), CancelToken::new());
        job.is_ok()
    })
}

/// A file with one tensor.
fn zeros(name: &str, shape: [usize; 4]) -> Vec<u8> {
    let data = vec![0; 4 * shape.iter().product::<usize>()];
    let end = data.len();
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[0,{end}]}}}}"#);
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data[..]].concat()
}

libfuzzer_sys::fuzz_target!(init: evanesce_engine::use_threads(Some(1)).expect("no pool exists"), |input: &[u8]| {
    MODEL.with(|model| {
        admitted(model, input);
        scene::check_returned(model);
    });
});
